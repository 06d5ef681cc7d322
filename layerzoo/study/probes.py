"""What studies measure of a trained model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from layerzoo.config import Recipe
from layerzoo.data.datamodule import ImageData
from layerzoo.data.loader import Loader
from layerzoo.hub import load
from layerzoo.models.model import Model
from layerzoo.train.run import find_device


def opened(recipe: Recipe, checkpoint: Path, kept: dict[str, ImageData]) -> tuple[Model, ImageData]:
    """A run's final model, in eval mode on the recipe's device, and its data, which is taken from `kept` if it is there."""
    key = repr(recipe.data)
    if key not in kept:
        kept.clear()
        kept[key] = ImageData(recipe.data, seed=0)
        kept[key].setup()
    return load(checkpoint).to(find_device(recipe.trainer)).eval(), kept[key]


@torch.inference_mode()
def accuracy(model: Model, loader: Loader, change: Callable[[Tensor], Tensor] = lambda x: x) -> float:
    """Per cent of images that are classified rightly, in float32, after `change` of each batch."""
    device = next(model.parameters()).device
    right = sum((model(change(x.to(device))).argmax(1) == y.to(device)).sum().item() for x, y in loader)
    return 100 * right / loader.count


def train_accuracy(model: Model, data: ImageData, most: int = 10_000) -> float:
    """Accuracy on the training images, not augmented; on `most` of them drawn at random where there are more."""
    which, index = data.parts["train"]
    some = np.sort(np.random.default_rng(0).permutation(index)[:most])
    data.parts["val"] = which, some  # where images are not augmented
    return accuracy(model, data.val_dataloader())
