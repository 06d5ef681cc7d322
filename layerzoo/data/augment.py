"""Training augmentation: what is drawn, as a function of (seed, epoch, sample index), and what happens to a whole batch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from layerzoo.config import AugmentConfig
from layerzoo.data.draws import Draw, draw, integers
from layerzoo.errors import bad_value, unknown_name

FLIPS = ("random", "alternating", "none")


class Augment:
    """The draws of crop, flip and cutout for each sample, and mixup and CutMix of a batch.

    An image is mirrored, padded by reflection, cut back to img_size, normalised, and then cutout sets a square to 0, the
    mean colour.

    Args:
        config: what to do.
        seed: of all draws.
        img_size: side of the images in pixels.
    Raises:
        ValueError: for an unknown flip, or padding that reflection cannot give.
    """

    def __init__(self, config: AugmentConfig, seed: int, img_size: int):
        if config.flip not in FLIPS:
            raise unknown_name("data.augment.flip", config.flip, FLIPS, "help(layerzoo.config.AugmentConfig)")
        if config.crop_padding >= img_size:
            raise bad_value(
                "data.augment.crop_padding", got=config.crop_padding, expected=f"less than data.img_size = {img_size}, since it mirrors the image",
                do="Use an eighth of the size, such as 4 for 32.")
        self.config, self.seed, self.img_size = config, seed, img_size
        self.mixes = config.mixup > 0 or config.cutmix > 0

    def corners(self, index: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Top and left of the crop in the padded image, each (N,), for samples `index`."""
        places = 2 * self.config.crop_padding + 1
        return tuple(integers(index, places, self.seed, epoch, which) for which in (Draw.TOP, Draw.LEFT))

    def mirrored(self, index: np.ndarray, epoch: int) -> np.ndarray:
        """Whether each sample is mirrored, (N,) of 0 and 1. Alternating: at random in epoch 0, then every other epoch."""
        if self.config.flip == "none":
            return np.zeros(len(index), np.int64)
        if self.config.flip == "random":
            return integers(index, 2, self.seed, epoch, Draw.FLIP)
        return (integers(index, 2, self.seed, 0, Draw.FLIP) + epoch) % 2

    def holes(self, index: np.ndarray, epoch: int) -> np.ndarray:
        """Top and left of the square that cutout erases, (2, N); its centre is in the image, its rest may not be (arXiv 1708.04552)."""
        centres = [integers(index, self.img_size, self.seed, epoch, which) for which in (Draw.HOLE_TOP, Draw.HOLE_LEFT)]
        return np.stack(centres) - self.config.cutout // 2

    def transform_seed(self, index: int, epoch: int) -> int:
        """Of the transforms that draw from global generators."""
        return int(draw(np.array([index]), self.seed, epoch, Draw.TRANSFORM)[0])

    def mix(self, x: Tensor, y: Tensor, num_classes: int, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Mixup (arXiv 1710.09412) or CutMix (arXiv 1905.04899) of a batch with itself, turned by half its length.

        Where both are on, each batch takes one of them at random. The share and the box are drawn once a batch.

        Args:
            x: images (B, C, H, W), changed in place by CutMix.
            y: classes (B,).
            num_classes: K.
            epoch: from 0.
            step: number of the batch in its epoch.
        Returns:
            images, and soft targets (B, K) float32.
        """
        rng = np.random.default_rng((self.seed, epoch, step, Draw.MIX))
        cut = self.config.cutmix > 0 and (self.config.mixup <= 0 or rng.random() < 0.5)
        strength = self.config.cutmix if cut else self.config.mixup
        share = rng.beta(strength, strength)
        half = len(x) // 2
        if cut:
            rows, columns = _box(rng, share, x.shape[2:])
            x[:, :, rows, columns] = x[:, :, rows, columns].roll(half, 0)
            share = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (x.shape[2] * x.shape[3])
        else:
            x = torch.lerp(x, x.roll(half, 0), 1 - share)  # in this order the result stays channels_last
        target = F.one_hot(y, num_classes).float()
        return x, torch.lerp(target.roll(half, 0), target, share)


def pad(images: np.ndarray, padding: int) -> np.ndarray:
    """Images (N, H, W, C) continued by reflection: (N, H + 2 padding, W + 2 padding, C)."""
    return np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode="reflect")


def erase(x: Tensor, holes: Tensor, side: int) -> None:
    """Set a square of `side` pixels to 0 in each image of x (B, C, H, W), in place; holes (2, B) are their tops and lefts."""
    inside = []
    for first, length in zip(holes, x.shape[2:]):
        place = torch.arange(length, device=x.device)
        inside.append((place >= first[:, None]) & (place < first[:, None] + side))
    x.masked_fill_((inside[0][:, :, None] & inside[1][:, None, :])[:, None], 0)


def _box(rng: np.random.Generator, share: float, size: torch.Size) -> tuple[slice, slice]:
    """Rows and columns of a box that holds 1 - share of the image, less what falls outside it."""
    slices = []
    for length in size:
        extent, centre = int(length * np.sqrt(1 - share)), int(rng.integers(length))
        first = centre - extent // 2
        slices.append(slice(max(first, 0), min(first + extent, length)))
    return tuple(slices)
