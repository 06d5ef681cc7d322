"""The runs of a study: planned, refused where wrong before the first begins, trained once each, gathered over seeds."""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass

from layerzoo.config import GREY, LOCAL, Recipe
from layerzoo.errors import bad_value, unknown_name
from layerzoo.recipe import read_recipe
from layerzoo.study.base import Case, Study

BASE = "cifar10/vit_tiny"
PLAIN = (
    "data.augment.mixup=0", "data.augment.cutmix=0", "model.drop_path=0.0",  # crop and flip alone: one plain recipe for all
    "trainer.check_val_every_n_epoch=1000000")  # without a val split that would be on the test images, and nothing is chosen by it
SCALES = {
    "smoke": (
        "data.img_size=16", "data.train_fraction=0.02", "data.batch_size=50", "data.augment.crop_padding=2", "trainer.max_epochs=2",
        "task.schedule.warmup_epochs=0.5", "model.options.dim=32", "model.options.depth=2", "model.options.block={num_heads: 2}",
        "trainer.precision=32-true", "logging.wandb=disabled", "logging.wrong_predictions=0"),
    "small": (
        "data.batch_size=125", "trainer.max_epochs=10", "task.schedule.warmup_epochs=1", "model.options.dim=64", "model.options.depth=4",
        "model.options.block={num_heads: 2}"),
    "full": ("data.batch_size=125", "trainer.max_epochs=100", "task.schedule.warmup_epochs=5"),
}  # the model of "full" is ViT-Ti
SIDES = 8  # what the side of an image must be a multiple of, to be cut in patches


@dataclass(frozen=True)
class Plan:
    """The runs of one case.

    Fields:
        case: what they differ in from those of other cases.
        recipes: one for each seed.
        name: below which their folders lie.
    """

    case: Case
    recipes: list[Recipe]
    name: str


def plan(study: Study, curves: list[str], scale: str, seeds: int, overrides: list[str]) -> list[Plan]:
    """Every run, its recipe read and checked.

    Args:
        study: what to run.
        curves: of `study.curves`; none = all.
        scale: one of SCALES.
        seeds: 0 to seeds - 1.
        overrides: of every recipe, such as "data.source=folder:PATH".
    Raises:
        ValueError: for a curve that there is not, seeds below 1, keys that the study sets itself, and images that patches do not fill.
        RecipeError: for whatever else is wrong in a recipe.
    """
    for curve in curves:
        if curve not in study.curves:
            raise unknown_name(f"curve of {study.name}", curve, study.curves, f"`layerzoo study {study.name}` without names runs all; docs/studies.md")
    if seeds < 1:
        raise bad_value("--seeds", got=seeds, expected="1 or more; 3 show a spread", do="Raise it.")
    for override in overrides:
        key = override.partition("=")[0]
        if any(f"{key}.".startswith(f"{own}.") or own.startswith(f"{key}.") for own in (*study.varies, "seed")):
            raise bad_value(
                f"--{key}", got=repr(override.partition("=")[2]), expected=f"keys that the study {study.name} does not set itself",
                do=f"Leave out {', '.join(study.varies)} and seed.")
    common = [*PLAIN, *SCALES[scale], *overrides]
    recipe = read_recipe(BASE, common)
    if recipe.data.img_size % SIDES:
        raise bad_value("--data.img_size", got=recipe.data.img_size, expected=f"a multiple of {SIDES}, to be cut in patches", do="Use 16 or 32.")
    if recipe.data.source.removeprefix(GREY).startswith(LOCAL):
        from layerzoo.data.sources import check_there

        check_there(recipe.data.source)
    plans = []
    for case in study.cases(recipe, curves or list(study.curves), scale):
        recipe = read_recipe(BASE, [*common, *case.changes])
        plans.append(Plan(case, [dataclasses.replace(recipe, seed=seed) for seed in range(seeds)], f"study/{study.name}/{case.curve}"))
    return plans


def run(study: Study, plans: list[Plan]) -> list[dict]:
    """Train and measure; runs that are done already are measured again but not repeated.

    Returns:
        One row per case and seed: labels, seed, test accuracy in per cent and what the study measures.
    """
    from layerzoo.study.probes import opened
    from layerzoo.train.run import fit

    rows, kept = [], {}
    for i, planned in enumerate(plans, 1):
        for recipe in planned.recipes:
            what = ", ".join(f"{key} {value}" for key, value in planned.case.labels.items())
            print(f"study  {study.name} {i}/{len(plans)}: {what}, seed {recipe.seed}", flush=True)
            result = fit(recipe, recipe_name=planned.name, resume="auto")
            accuracy = 100 * result.metrics["test/top1"]
            rows.append({**planned.case.labels, "seed": recipe.seed, "accuracy": accuracy, **study.probe(*opened(recipe, result.checkpoint, kept), accuracy)})
    return rows


def gather(plans: list[Plan], runs: list[dict]) -> list[dict]:
    """One row per case: labels, then mean and standard deviation over seeds of every number; None for the deviation of one seed."""
    rows = []
    for planned in plans:
        labels = planned.case.labels
        own = [r for r in runs if labels.items() <= r.items()]
        row = dict(labels)
        for what in [key for key in own[0] if key not in labels and key != "seed"]:
            values = [statistics.fmean(v) if isinstance(v := r[what], list) else v for r in own]
            row |= {what: statistics.fmean(values), f"{what} sd": statistics.stdev(values) if len(values) > 1 else None}
        rows.append(row)
    return rows
