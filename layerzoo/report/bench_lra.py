"""Encoder methods on the image task of the Long Range Arena, same recipe and steps for all: `layerzoo bench lra`."""

from __future__ import annotations

import statistics
import time

import torch
from torch.nn import functional as F

from layerzoo.errors import bad_value
from layerzoo.recipe import list_recipes, read_recipe, resolved

ROOM = "lra/image/"
LADDER = ("ladder/relative_positions", "ladder/conv_stem", "ladder/resnet")  # rungs above mhsa, from least to most inductive bias
PUBLISHED = {
    "mhsa": 42.44, "sparse_fixed": 44.24, "longformer": 42.22, "linformer": 38.56, "reformer": 38.07, "sinkhorn": 41.23, "synthesizer_random": 41.61,
    "bigbird": 40.83, "linear_attention": 42.34, "performer": 42.77}  # arXiv 2011.04006, table 1, trained for 35,000 steps


def methods() -> list[str]:
    """The layers that have a recipe, exact attention first, then the rungs of the ladder."""
    layers = (r.removeprefix(ROOM) for r in list_recipes() if r.startswith(ROOM))
    return [*sorted(layers, key=lambda name: (name != "mhsa", name)), *LADDER]


def bench_lra(names: list[str], seeds: int, overrides: list[str]) -> list[dict]:
    """Train each method with each seed; runs that are done already are not repeated.

    Args:
        names: of `methods()`.
        seeds: 0 to seeds - 1.
        overrides: of every recipe, such as "trainer.max_epochs=2".
    Returns:
        One row per method: mean and standard deviation of the test accuracy in per cent, training steps per second and MiB of a step
        (`pace`), and the accuracy that the Long Range Arena published.
    Raises:
        ValueError: for a name without a recipe and seeds below 1.
    """
    from layerzoo.train import run

    known = methods()
    unknown = [name for name in names if name not in known]
    if unknown or seeds < 1:
        what, got = ("layer", unknown[0]) if unknown else ("seeds", seeds)
        raise bad_value(what, got=repr(got), expected=f"one of {', '.join(known)}; 1 seed or more", do="Correct it, or leave it out for all.")
    rows = []
    for name in names:
        recipe_name, accuracies = f"lra/{name}" if name in LADDER else f"{ROOM}{name}", []
        for seed in range(seeds):
            recipe = read_recipe(recipe_name, [*overrides, f"seed={seed}"])
            accuracies.append(100 * run.fit(recipe, recipe_name=recipe_name, resume="auto").metrics["test/top1"])
        rate, mib = pace(recipe)
        rows.append({
            "method": name, "accuracy": f"{statistics.mean(accuracies):.2f}", "sd": f"{statistics.stdev(accuracies):.2f}" if seeds > 1 else "",
            "steps/s": f"{rate:.2f}", "MiB": f"{mib:.0f}", "published": PUBLISHED.get(name, "")})
    return rows


def pace(recipe: object, seconds: float = 1.0) -> tuple[float, float]:
    """Training steps per second of a recipe's model alone, and the most MiB that a step has alive beside weights and optimiser.

    Args:
        recipe: its model, batch size, optimiser, precision and accelerator are used; images are noise.
        seconds: least time to measure for, after three steps.
    """
    from layerzoo.models import create_model
    from layerzoo.report.bench_layers import peak_mib
    from layerzoo.tasks.optim import create_optimizer
    from layerzoo.train.run import find_device, find_precision

    device, half = find_device(recipe.trainer), "16" in find_precision(recipe.trainer)
    model = create_model(**resolved(recipe)["model"], num_classes=10, img_size=recipe.data.img_size).to(device)
    optimizer = create_optimizer(model, recipe.task.optimizer)
    x = torch.randn(recipe.data.batch_size, 3, *model.img_size, device=device)
    target = torch.randint(10, (len(x),), device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = F.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def wait() -> None:
        if device.type != "cpu":
            torch.accelerator.synchronize()

    for _ in range(2):
        step()
    if device.type == "cuda":
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        mib = (torch.cuda.max_memory_allocated() - held) / 2**20
    else:
        mib = peak_mib(step)
    wait()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        step()
        wait()
        count += 1
    return count / (time.perf_counter() - start), mib
