"""The streaming pipeline: worker processes read and transform images, each from a seed of its own."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from layerzoo.config import AugmentConfig
from layerzoo.data.augment import Augment, pad
from layerzoo.data.images import fit_image
from layerzoo.data.loader import Feed, Loader
from layerzoo.data.sources import ImageSet
from layerzoo.data.unreadable import Unreadable
from layerzoo.data.workers import TIMEOUT, pulse, watched
from layerzoo.errors import DataRefused, bad_value

_NUMBER = r"\d+(\.\d+)?"
_POLICY = rf"rand(-(m\d+|n\d+|p{_NUMBER}|mstd{_NUMBER}|mmax\d+|inc[01]|t(weights|3a|3aw)))*"


class Stream(Dataset):
    """Reads, cuts, transforms, crops and mirrors a batch of images.

    Args:
        images: the set.
        size: side in pixels.
        augment: of training; None = evaluation.
        unreadable: gives the images.
    Raises:
        ValueError: for a randaugment that timm does not know.
    """

    def __init__(self, images: ImageSet, size: int, augment: Augment | None, unreadable: Unreadable):
        self.images, self.size, self.augment, self.unreadable, self.done = images, size, augment, unreadable, pulse()
        self.cut, self.change = create_transforms(augment.config, size) if augment else (None, None)

    def __getitem__(self, request: tuple[int, np.ndarray, np.ndarray]) -> Tensor | list | DataRefused:
        """(B, size, size, 3) uint8 of (epoch, sample numbers, their numbers in the set); if others stand in for some, a list
        of that and the reasons by number. An error returns as a value, since torch would raise it below a worker's traceback."""
        met: dict[int, str] = {}
        try:
            batch = self._batch(*request, met)
        except DataRefused as error:
            return error
        return [batch, met] if met else batch

    def _batch(self, epoch: int, index: np.ndarray, places: np.ndarray, met: dict[int, str]) -> Tensor:
        images = np.stack([self._image(epoch, int(i), int(place), met) for i, place in zip(index, places)])
        if self.augment is None:
            return torch.from_numpy(images)
        flips, size = self.augment.mirrored(index, epoch).astype(bool), self.size
        images[flips] = images[flips, :, ::-1]
        padded = pad(images, self.augment.config.crop_padding)
        crops = [image[top : top + size, left : left + size] for image, top, left in zip(padded, *self.augment.corners(index, epoch))]
        return torch.from_numpy(np.stack(crops))

    def _image(self, epoch: int, i: int, place: int, met: dict[int, str]) -> np.ndarray:
        image, reason = self.unreadable.read(place)
        if reason:
            met[place] = reason
        self.done += 1
        if self.augment is None:
            return np.asarray(fit_image(image, self.size))
        with seeded(self.augment.transform_seed(i, epoch)):
            image = self.cut(image) if self.cut else fit_image(image, self.size)
            return np.asarray(self.change(image))


class StreamLoader(Loader):
    """Batches that worker processes make ahead.

    Args:
        images: the set; the feed's index says which of them.
        size: side in pixels.
        feed: what to give.
        num_workers: processes; 0 = this one.
        timeout: seconds without an image from any worker before they are given up.
        unreadable: what stands in for broken images; None = nothing.
    """

    def __init__(
        self, images: ImageSet, size: int, feed: Feed, num_workers: int, timeout: float = TIMEOUT, unreadable: Unreadable | None = None,
    ):
        super().__init__(feed)
        self.unreadable = unreadable or Unreadable(images)
        self.stream = Stream(images, size, feed.augment, self.unreadable)
        self.num_workers, self.timeout = num_workers, timeout
        self.requests: list[tuple[int, np.ndarray, np.ndarray]] = []

    def pixels(self, index: np.ndarray, epoch: int, parts: list[slice]) -> Iterator[Tensor]:
        self.requests[:] = [(epoch, index[part], self.feed.index[index[part]]) for part in parts]
        for batch in watched(self.workers, self.stream.done, self.timeout, self._describe):
            if isinstance(batch, DataRefused):
                raise batch
            if isinstance(batch, list):
                batch, met = batch
                self.unreadable.add(met)
            yield batch

    def close(self) -> None:
        # left to the garbage collector, the queue to a worker may go before the word to end is in it, and each is waited for in vain
        loader = self.__dict__.pop("workers", None)
        if loader is not None and loader._iterator is not None:
            loader._iterator._shutdown_workers()

    def _describe(self, k: int) -> str:
        _, _, places = self.requests[k]
        return " ... ".join(self.stream.images.name(int(places[i])) for i in (0, -1))

    @cached_property
    def workers(self) -> DataLoader:
        """Processes that live as long as the loader; each epoch refills the list of requests that they are sent."""
        many = self.num_workers > 0
        return DataLoader(
            self.stream, sampler=self.requests, batch_size=None, num_workers=self.num_workers, persistent_workers=many,
            pin_memory=self.feed.device.type == "cuda")


def create_transforms(config: AugmentConfig, size: int) -> tuple[Callable | None, Callable]:
    """timm's random resized crop, or None, and its RandAugment and colour jitter; image to image.

    Raises:
        ValueError: for a randaugment that timm does not know.
    """
    from timm.data.transforms_factory import transforms_imagenet_train

    check_policy(config.randaugment)
    cut, change, _ = transforms_imagenet_train(
        size, scale=(config.resized_crop or 1, 1), hflip=0, color_jitter=config.color_jitter or None, force_color_jitter=True,
        auto_augment=config.randaugment or None, separate=True)
    for step in change.transforms:
        for op in getattr(step, "ops", ()):
            if op.name.startswith("Posterize"):
                op.aug_fn = posterize
    return (cut if config.resized_crop else None), change


def check_policy(policy: str) -> None:
    """Refuse a randaugment that timm would reject, or whose sections it would silently pass over."""
    if policy and not re.fullmatch(_POLICY, policy):
        raise bad_value(
            "data.augment.randaugment", got=repr(policy), expected="timm's form, such as rand-m9-mstd0.5-inc1",
            do="Sections: m magnitude, n operations, p probability, mstd spread, mmax bound, inc1 growing severity, t set of operations.")


def posterize(image: Image.Image, bits: int, **unused) -> Image.Image:
    """timm's, which asks Pillow for 0 bits at the greatest severity; Pillow >= 13 wants at least 1."""
    from timm.data import auto_augment

    return auto_augment.posterize(image, max(1, bits))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Python's, NumPy's and torch's global generators start from `seed`, and afterwards go on as if nothing had been."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed >> 32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
