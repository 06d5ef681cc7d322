"""Encoder methods on the image task of the Long Range Arena, same recipe and steps for all: `layerzoo bench lra`."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from layerzoo.errors import bad_value
from layerzoo.recipe import list_recipes, read_recipe, resolved

ROOM = "lra/image/"
PUBLISHED = {
    "mhsa": 42.44, "sparse_fixed": 44.24, "longformer": 42.22, "linformer": 38.56, "reformer": 38.07, "sinkhorn": 41.23, "synthesizer_random": 41.61,
    "bigbird": 40.83, "linear_attention": 42.34, "performer": 42.77}  # arXiv 2011.04006, table 1, trained for 35,000 steps


def methods() -> list[str]:
    """The layers that have a recipe, exact attention first."""
    return sorted((r.removeprefix(ROOM) for r in list_recipes() if r.startswith(ROOM)), key=lambda name: (name != "mhsa", name))


def bench_lra(names: list[str], seeds: int, overrides: list[str]) -> list[dict]:
    """Train each method with each seed; runs that are done already are not repeated.

    Args:
        names: layers that have a recipe.
        seeds: 0 to seeds - 1.
        overrides: of every recipe, such as "trainer.max_epochs=2".
    Returns:
        One row per method: mean and standard deviation of the test accuracy in per cent, steps per second, MiB of activations of a batch,
        and the accuracy that the Long Range Arena published.
    Raises:
        ValueError: for a layer without a recipe and seeds below 1.
    """
    from layerzoo.train import run

    known = methods()
    unknown = [name for name in names if name not in known]
    if unknown or seeds < 1:
        what, got = ("layer", unknown[0]) if unknown else ("seeds", seeds)
        raise bad_value(what, got=repr(got), expected=f"one of {', '.join(known)}; 1 seed or more", do="Correct it, or leave it out for all.")
    rows = []
    for name in names:
        accuracies, rates = [], []
        for seed in range(seeds):
            recipe = read_recipe(f"{ROOM}{name}", [*overrides, f"seed={seed}"])
            result = run.fit(recipe, recipe_name=f"{ROOM}{name}", resume="auto")
            accuracies.append(100 * result.metrics["test/top1"])
            rates += [rate / recipe.data.batch_size for rate in _throughput(result.folder)]
        rows.append({
            "method": name, "accuracy": f"{statistics.mean(accuracies):.2f}", "sd": f"{statistics.stdev(accuracies):.2f}" if seeds > 1 else "",
            "steps/s": f"{statistics.median(rates):.2f}", "MiB": f"{_activations(recipe):.0f}", "published": PUBLISHED.get(name, "")})
    return rows


def _throughput(folder: Path) -> list[float]:
    """Images per second at each reading but the first, which has the warm-up of kernels in it."""
    rows = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    found = [row["train/images_per_s"] for row in rows if "train/images_per_s" in row]
    return found[1:] or found


def _activations(recipe: object) -> float:
    """MiB of activations that a batch of the recipe keeps for its backward pass."""
    from layerzoo.models import create_model
    from layerzoo.report.cost import cost

    model = create_model(**resolved(recipe)["model"], num_classes=10, img_size=recipe.data.img_size)
    return cost(model, (recipe.data.batch_size, 3, *model.img_size)).activation_bytes / 2**20
