"""What both pipelines share: order, shares of ranks, resumption, normalisation and the augmentation of whole batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from layerzoo.data.augment import Augment, erase
from layerzoo.data.draws import Draw, permutation
from layerzoo.errors import DataRefused, bad_value

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Feed:
    """What a loader is to give.

    Fields:
        index: (N,) numbers of the samples, in the set they come from.
        labels: (N,) class numbers.
        num_classes: K.
        mean: per channel, over pixels in [0, 1].
        std: likewise.
        batch_size: in training over all ranks, in evaluation of this rank.
        augment: of training, with its seed; None = evaluation.
        targets: give (x, y), else x alone.
        rank: of this process.
        world_size: number of processes.
        device: where batches go.
        listing: hash of the samples, compared when a run is resumed.
        name: what messages call a sample, by its number in the set.
    """

    index: np.ndarray
    labels: np.ndarray
    num_classes: int
    mean: list[float]
    std: list[float]
    batch_size: int
    augment: Augment | None = None
    targets: bool = True
    rank: int = 0
    world_size: int = 1
    device: torch.device = CPU
    listing: str = ""
    name: Callable[[int], str] = str


class Loader:
    """Batches of (x, y): x float32 normalised (B, 3, H, W) channels_last, y int64 (B,) or float32 (B, K) where batches are mixed.

    In training the order is a function of (seed, epoch); global batch k is the k-th run of batch_size samples of it, and rank r
    takes every world_size-th from the r-th. The last samples that do not fill a batch are left out, if there is one full batch. In
    evaluation rank r takes every world_size-th sample from the r-th: no padding, each sample once. Iterating goes on to the next
    epoch; a state taken after any batch gives back exactly the batches that remain.

    Args:
        feed: what to give.
    Raises:
        ValueError: if the global batch cannot be shared out evenly.
        DataRefused: if there are fewer samples than ranks.
    """

    batch_sampler = None  # Lightning asks for one where there is a sampler

    def __init__(self, feed: Feed):
        self.feed = feed
        self.epoch, self.done, self.first = 0, 0, 0
        if len(feed.index) < feed.world_size:  # a rank without any would not take part where the others wait for it
            raise bad_value(
                "images of a split", got=f"{len(feed.index)} for {feed.world_size} devices", expected="at least one for each", do="Use fewer devices.",
                kind=DataRefused)
        if feed.augment is None:
            self.local_batch = feed.batch_size
            self.count = len(range(feed.rank, len(feed.index), feed.world_size))
        else:
            self.local_batch = min(feed.batch_size, len(feed.index)) // feed.world_size
            self.count = self.local_batch * max(1, len(feed.index) // feed.batch_size)
            self._check_share()

    def __len__(self) -> int:
        return math.ceil(self.count / self.local_batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor] | Tensor]:
        feed, epoch, first, self.first = self.feed, self.epoch, self.first, 0
        index = self.order(epoch)
        labels = torch.from_numpy(feed.labels[index]).to(feed.device)
        scale = 1 / (255 * torch.tensor(feed.std, dtype=torch.float64))
        shift = (-255 * scale * torch.tensor(feed.mean, dtype=torch.float64)).float().to(feed.device)
        scale = scale.float().to(feed.device)
        cutout = feed.augment.config.cutout if feed.augment else 0
        holes = torch.from_numpy(feed.augment.holes(index, epoch)).to(feed.device) if cutout else None
        parts = [slice(i, i + self.local_batch) for i in range(first * self.local_batch, self.count, self.local_batch)]
        for step, (part, pixels) in enumerate(zip(parts, self.pixels(index, epoch, parts)), first):
            x, y = normalise(pixels.to(feed.device, non_blocking=True), shift, scale), labels[part]
            if cutout:
                erase(x, holes[:, part], cutout)
            if feed.augment and feed.augment.mixes:
                x, y = feed.augment.mix(x, y, feed.num_classes, epoch, step)
            self.epoch, self.done = epoch, step + 1
            yield (x, y) if feed.targets else x
        self.epoch, self.done = epoch + 1, 0

    def order(self, epoch: int) -> np.ndarray:
        """Numbers below N of this rank's samples, in the order they are given in."""
        feed = self.feed
        if feed.augment is None:
            return np.arange(feed.rank, len(feed.index), feed.world_size)
        order = permutation(len(feed.index), feed.augment.seed, epoch, Draw.ORDER)[: self.count * feed.world_size]
        return order[feed.rank :: feed.world_size]

    def names(self, epoch: int, step: int) -> list[str]:
        """Of the samples in batch `step` of an epoch."""
        index = self.order(epoch)[step * self.local_batch : (step + 1) * self.local_batch]
        return [self.feed.name(int(i)) for i in self.feed.index[index]]

    def pixels(self, index: np.ndarray, epoch: int, parts: list[slice]) -> Iterator[Tensor]:
        """For each of the parts of `index`, these samples cropped and mirrored: (B, H, W, 3) uint8."""
        raise NotImplementedError(f"{type(self).__name__} must define pixels()")

    def close(self) -> None:
        """End what works ahead for this loader; iterated again, it starts anew."""

    @property
    def sampler(self) -> Loader:
        """Lightning tells the epoch to the sampler of a loader."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration gives; from its start, unless it is the one already begun."""
        if epoch != self.epoch:
            self.epoch, self.done, self.first = epoch, 0, 0

    def state_dict(self) -> dict:
        """Where the iteration stands, for all ranks and any number of them."""
        return {"epoch": self.epoch, "samples": self.done * self.local_batch * self.feed.world_size, "listing": self.feed.listing}

    def load_state_dict(self, state: dict) -> None:
        """Go on behind the last batch before `state` was taken.

        Raises:
            DataRefused: if the training set is not the one it was.
            ValueError: if that place is inside a batch, because batches had another size.
        """
        if state["listing"] != self.feed.listing:
            raise bad_value(
                "training set", got="other images, another order or other classes than at the checkpoint", expected="those the run began with",
                do="Restore them, or begin a new run with --resume never.", kind=DataRefused)
        batch = self.local_batch * self.feed.world_size
        if state["samples"] % batch:
            raise bad_value(
                "data.batch_size", got=batch, expected=f"a divisor of the {state['samples']} samples that the checkpoint's epoch has seen",
                do="Use the batch size the run began with.")
        self.epoch, self.first = state["epoch"], state["samples"] // batch
        self.done = self.first

    def _check_share(self) -> None:
        batch, ranks, per_rank = self.feed.batch_size, self.feed.world_size, self.local_batch
        if batch % ranks:
            nearest = " or ".join(str(b) for b in (batch // ranks * ranks, batch // ranks * ranks + ranks) if b)
            raise bad_value("data.batch_size", got=f"{batch} over {ranks} devices", expected=f"a multiple of {ranks}", do=f"Use {nearest}.")
        if self.feed.augment.mixes and ranks > 1 and per_rank % 2:
            raise bad_value(
                "data.batch_size", got=f"{batch}, which is {per_rank} on each of {ranks} devices", expected="an even number on each, as mixup and CutMix mix pairs",
                do=f"Use {(per_rank + 1) * ranks}.")


def normalise(pixels: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """(B, H, W, C) uint8 to (B, C, H, W) float32 channels_last: pixel * scale + shift per channel, in one pass over whole rows."""
    batch, height, width, channels = pixels.shape
    rows = pixels.view(batch, height, width * channels).float()
    return torch.addcmul(shift.repeat(width), rows, scale.repeat(width)).view(batch, height, width, channels).permute(0, 3, 1, 2)
