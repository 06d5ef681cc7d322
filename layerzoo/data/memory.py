"""The in-memory pipeline: the set is padded and mirrored once, so that crop and flip are one index into it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from layerzoo.data.augment import pad
from layerzoo.data.loader import CPU, Feed, Loader


class MemoryLoader(Loader):
    """Batches of a set that is held as uint8, on the GPU if it fills at most half of what is free there.

    Args:
        images: (M, H, W, 3) uint8; the feed's index says which of them.
        feed: what to give.
    """

    def __init__(self, images: Tensor, feed: Feed):
        super().__init__(feed)
        self.images = images

    def pixels(self, index: np.ndarray, epoch: int, parts: list[slice]) -> Iterator[Tensor]:
        # Any window is a fixed pattern of strides behind its first byte. One index into a view of all windows, each overlapping the
        # next, therefore copies a batch of crops in whole rows, without a loop in Python.
        padded, size = self.padded, self.images.shape[1]
        row = padded.shape[3] * 3
        windows = padded.view(-1).as_strided((padded.numel() - (size - 1) * row - size * 3 + 1, size, size * 3), (1, row, 1))
        starts = torch.from_numpy(self._starts(index, epoch)).to(padded.device)
        for part in parts:
            yield windows.index_select(0, starts[part]).view(-1, size, size, 3)

    def _starts(self, index: np.ndarray, epoch: int) -> np.ndarray:
        """Number of the first byte of each sample's window."""
        _, count, height, width, _ = self.padded.shape
        augment = self.feed.augment
        if augment is None:
            return index * (height * width * 3)
        top, left = augment.corners(index, epoch)
        image = augment.mirrored(index, epoch) * count + index
        return ((image * height + top) * width + left) * 3

    @cached_property
    def padded(self) -> Tensor:
        """The images, and where they are flipped also their mirror images: (1 or 2, N, H + 2p, W + 2p, 3) uint8."""
        augment = self.feed.augment
        padding, copies = (augment.config.crop_padding, 1 if augment.config.flip == "none" else 2) if augment else (0, 1)
        size = self.images.shape[1]
        side = size + 2 * padding
        shape = (copies, len(self.feed.index), side, side, 3)
        padded = torch.empty(shape, dtype=torch.uint8, device=self._home(int(np.prod(shape))))
        done = 0
        for part in torch.from_numpy(self.feed.index).split(4096):
            piece = torch.from_numpy(pad(self.images[part].numpy(), padding))
            for copy, images in zip(padded, (piece, piece.flip(2))):
                copy[done : done + len(part)] = images
            done += len(part)
        return padded

    def _home(self, size: int) -> torch.device:
        device = self.feed.device
        if device.type == "cuda" and 2 * size <= torch.cuda.mem_get_info(device)[0]:
            return device
        return CPU

