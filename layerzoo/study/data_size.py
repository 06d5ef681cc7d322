"""Data size: convolution, attention and what lies between them on growing parts of a training set."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

from layerzoo.errors import bad_value
from layerzoo.study.base import Case, Study, against, told

if TYPE_CHECKING:
    from layerzoo.config import Recipe
    from layerzoo.data.datamodule import ImageData
    from layerzoo.models.model import Model

FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
EPOCHS, STEPS = "equal epochs", "equal steps"
OPTIONS = {
    "smoke": {
        "resnet18": {"dims": [8, 16, 32, 64], "depths": [1, 1, 1, 1]}, "vit_tiny": {"dim": 32, "depth": 2, "block": {"num_heads": 2}},
        "attention_cnn": {"dim": 32, "depth": 2}, "coatnet_micro": {"dims": [8, 16, 32], "depths": [1, 1, 1]},
        "cct_7": {"dim": 32, "depth": 2, "block": {"num_heads": 2}}},
    "small": {
        "resnet18": {"dims": [16, 32, 64, 128]}, "vit_tiny": {"dim": 64, "depth": 4, "block": {"num_heads": 2}}, "attention_cnn": {"dim": 64, "depth": 3},
        "coatnet_micro": {}, "cct_7": {"dim": 64, "depth": 4, "block": {"num_heads": 2}}},
}  # at full scale models are as their papers have them
SLIDE = (
    "The crossover of the lecture's slide (arXiv 2010.11929, ResNet152x2 and ViT-L/16 on parts of JFT) lies at tens of millions of images, between 30 and 90 "
    "million: it cannot be reached on CIFAR, whose 50,000 are all there are, and nothing here confirms or refutes it. What can be seen is whether the lead of "
    "convolution shrinks as images are added, and where models between both stand.")


class DataSize(Study):
    """Models on nested, class-balanced parts of the training set; a part's mean and deviation are its own."""

    name = "data_size"
    question = "Is convolution better with little data, and attention with much?"
    curves = ("resnet18", "vit_tiny", "attention_cnn", "coatnet_micro", "cct_7")
    varies = ("model",)
    axis = "images"
    by = ("model", "budget")
    panels = {"accuracy": "test accuracy (%)", "gap": "train less test accuracy (points)"}

    def cases(self, recipe: Recipe, curves: list[str], scale: str) -> list[Case]:
        """Of the parts up to the recipe's train_fraction; the largest is trained for its epochs."""
        from layerzoo.data.sources import open_source

        data, epochs, warmup = recipe.data, recipe.trainer.max_epochs, recipe.task.schedule.warmup_epochs
        fractions = [f for f in FRACTIONS if f <= data.train_fraction]
        if not fractions:
            raise bad_value(
                "--data.train_fraction", got=data.train_fraction, expected=f"{FRACTIONS[0]} or more, the share of the smallest part", do="Raise it.")
        classes = Counter(open_source(data.source).splits["train"].labels.tolist()).values()

        def count(fraction: float) -> int:
            kept = [max(1, round((1 - data.val_fraction) * of)) if data.val_fraction else of for of in classes]
            return sum(max(1, round(fraction * of)) for of in kept)

        def steps(fraction: float) -> int:
            return max(1, count(fraction) // data.batch_size)

        cases = []
        for name in curves:
            options = json.dumps(OPTIONS.get(scale, {}).get(name, {}))
            for budget in (EPOCHS, STEPS):
                for fraction in fractions:
                    passes = epochs if budget == EPOCHS else round(epochs * steps(fractions[-1]) / steps(fraction))
                    labels = {"model": name, "budget": budget, "images": count(fraction), "epochs": passes}
                    cases.append(Case(labels, (
                        f"model.name={name}", "model.stem=null", f"model.options={options}", f"data.train_fraction={fraction}",
                        f"trainer.max_epochs={passes}", f"task.schedule.warmup_epochs={passes / epochs * warmup}")))
        return cases

    def probe(self, model: Model, data: ImageData, tested: float) -> dict[str, float | list[float]]:
        from layerzoo.study.probes import train_accuracy

        train = train_accuracy(model, data)
        return {"train accuracy": train, "gap": train - tested}

    def conclude(self, rows: list[dict]) -> str:
        parts = []
        for budget in dict.fromkeys(r["budget"] for r in rows):
            own = [r for r in rows if r["budget"] == budget]
            fewest, most = ([r for r in own if r["images"] == pick(r["images"] for r in own)] for pick in (min, max))
            for there in (fewest, most):
                words = ", ".join(f"{r['model']} {told(r)} (train less test {r['gap']:.1f})" for r in sorted(there, key=lambda r: -r["accuracy"]))
                parts.append(f"With {budget} on {there[0]['images']:,} images: {words}.")
            pairs = {r["model"]: r for r in fewest}, {r["model"]: r for r in most}
            if {"resnet18", "vit_tiny"} <= pairs[0].keys():
                parts.append(
                    f"resnet18 is {against(pairs[0]['resnet18'], pairs[0]['vit_tiny'])} vit_tiny with the fewest images and "
                    f"{against(pairs[1]['resnet18'], pairs[1]['vit_tiny'])} it with the most.")
        return " ".join([*parts, SLIDE])
