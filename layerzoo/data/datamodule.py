"""ImageData: a recipe's data as a LightningDataModule."""

from __future__ import annotations

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from layerzoo.config import DataConfig
from layerzoo.data.augment import Augment
from layerzoo.data.cache import load_pixels
from layerzoo.data.draws import Draw, draw, permutation
from layerzoo.data.loader import CPU, Feed, Loader
from layerzoo.data.memory import MemoryLoader
from layerzoo.data.sources import ImageSet, check_source, open_source
from layerzoo.data.streaming import StreamLoader, check_policy
from layerzoo.data.unreadable import Unreadable
from layerzoo.errors import DataRefused, bad_value, unknown_name

MEMORY_LIMIT = 2 * 2**30  # bytes of decoded images that `pipeline: auto` keeps in memory
IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # mean and standard deviation
_STREAMED = ("resized_crop", "randaugment", "color_jitter")


class ImageData(pl.LightningDataModule):
    """Images and classes of a source, in memory or streamed, with the same order and the same crops either way.

    Without a val split in the source, validation takes val_fraction of the training images (class-balanced, the same for
    every seed, so that no checkpoint is validated on what it has seen), or the test set; without a test split, testing
    takes the validation images. Mean and standard deviation are those of the training images in memory, ImageNet's when
    streaming; set `mean` and `std` after `setup` to use others.

    Args:
        config: what to feed, and how.
        seed: of order and augmentation.
    Raises:
        ValueError: for options that do not go together, before data is touched.
    """

    in_chans = 3

    def __init__(self, config: DataConfig, seed: int):
        super().__init__()
        self.config = config
        self.augment = Augment(config.augment, seed, config.img_size)
        self._check_options()
        self.sets: dict[str, ImageSet] = {}
        self._loaders: dict[tuple, Loader] = {}

    def prepare_data(self) -> None:
        """Open the source, and decode it into the cache if it is kept in memory."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Open the source; afterwards classes, mean, std and num_samples are known. Calling again does nothing.

        Raises:
            DataRefused: if the data is not there or broken, naming the file.
        """
        if self.sets:
            return
        config = self.config
        source = open_source(config.source)
        self.in_memory, reason = self._choose(source.splits)
        broken: dict[int, str] = {}
        self.pixels = {
            split: load_pixels(images, config.img_size, config.cache, broken if config.max_unreadable and split == "train" else None)
            for split, images in source.splits.items()} if self.in_memory else {}
        self.classes = source.classes or [str(c) for c in range(int(source.splits["train"].labels.max()) + 1)]
        self.sets = source.splits
        self.parts, note = self._split()
        self.unreadable = Unreadable(self.sets["train"], config.max_unreadable, self.parts["train"][1])
        if broken:
            self._mend(broken)
        self.num_samples = {split: len(index) for split, (_, index) in self.parts.items()}
        self.mean, self.std = _moments(self.pixels["train"], self.parts["train"][1]) if self.in_memory else IMAGENET
        _say(f"feed   {reason}; mean and std {'of the training images' if self.in_memory else 'of ImageNet'}{note}")

    def teardown(self, stage: str | None = None) -> None:
        self.close()

    def close(self) -> None:
        """End all workers, as Lightning does not where a run fails."""
        for loader in self._loaders.values():
            loader.close()

    def train_dataloader(self) -> Loader:
        return self._loader("train", self.config.batch_size, self.augment)

    def val_dataloader(self) -> Loader:
        return self._loader("val", self.config.eval_batch_size)

    def test_dataloader(self) -> Loader:
        return self._loader("test", self.config.eval_batch_size)

    def predict_dataloader(self) -> Loader:
        return self._loader("test", self.config.eval_batch_size, targets=False)

    def training_images(self, count: int) -> Tensor:
        """`count` training images drawn at random, or all if there are fewer: (count, 3, H, W), normalised, not augmented, on the CPU."""
        which, index = self.parts["train"]
        index = index[permutation(len(index), self.augment.seed, Draw.SPLIT)[:count]]
        feed = self._feed(which, index, batch_size=self.config.eval_batch_size, targets=False)
        return torch.cat(list(self._create(which, feed, self.unreadable)))

    def _loader(self, split: str, batch_size: int, augment: Augment | None = None, targets: bool = True) -> Loader:
        rank, ranks, device = 0, 1, CPU
        if self.trainer is not None:
            rank, ranks, device = self.trainer.global_rank, self.trainer.world_size, self.trainer.strategy.root_device
        key = (split, targets, rank, ranks, device, *self.mean, *self.std)
        if key not in self._loaders:
            which, index = self.parts[split]
            feed = self._feed(
                which, index, batch_size=batch_size, augment=augment, targets=targets, rank=rank, world_size=ranks, device=device,
                listing=self.sets[which].listing(index))
            self._loaders[key] = self._create(which, feed, self.unreadable if split == "train" else None)
        return self._loaders[key]

    def _mend(self, broken: dict[int, str]) -> None:
        held = [int(i) for split, (which, index) in self.parts.items() if split != "train" and which == "train" for i in index if i in broken]
        if held:
            raise DataRefused(broken[held[0]])  # what is measured on is whole
        used = self.unreadable.index
        self.unreadable.mend(self.pixels["train"].numpy(), {i: broken[i] for i in broken if i in used})

    def _feed(self, which: str, index: np.ndarray, **options) -> Feed:
        return Feed(
            index=index, labels=self.sets[which].labels[index], num_classes=len(self.classes), mean=self.mean, std=self.std, name=self.sets[which].name,
            **options)

    def _create(self, which: str, feed: Feed, unreadable: Unreadable | None = None) -> Loader:
        if self.in_memory:
            return MemoryLoader(self.pixels[which], feed)
        return StreamLoader(self.sets[which], self.config.img_size, feed, self.config.num_workers, self.config.worker_timeout, unreadable)

    def _check_options(self) -> None:
        config, augment = self.config, self.config.augment
        check_source(config.source)
        if config.pipeline not in ("auto", "memory", "streaming"):
            raise unknown_name("data.pipeline", config.pipeline, ("auto", "memory", "streaming"), "help(layerzoo.config.DataConfig)")
        self.streamed = [f"data.augment.{option}" for option in _STREAMED if getattr(augment, option)]
        if self.streamed and config.pipeline == "memory":
            raise bad_value(
                "data.pipeline", got=f"memory with {' and '.join(self.streamed)}", expected="streaming, which alone transforms images one by one",
                do="Use data.pipeline: streaming, or crop_padding, flip, cutout, mixup and cutmix.")
        if augment.resized_crop and augment.crop_padding:
            raise bad_value(
                "data.augment", got=f"resized_crop {augment.resized_crop} and crop_padding {augment.crop_padding}", expected="one kind of random crop",
                do="Set one of them to 0.")
        if self.streamed:
            check_policy(augment.randaugment)

    def _choose(self, splits: dict[str, ImageSet]) -> tuple[bool, str]:
        """Whether the images are kept in memory, and a sentence that says why."""
        config = self.config
        count = sum(map(len, splits.values()))
        needed = count * 3 * config.img_size**2
        size = f"{count:,} images of {config.img_size} x {config.img_size} pixels, {needed / 2**30:.2f} GiB"
        sequential = not all(images.random_access for images in splits.values())
        if sequential and (config.pipeline == "streaming" or self.streamed):
            raise bad_value(
                "data.pipeline", got=f"streaming for {config.source}", expected="memory: this source can only be read from first to last, so its order cannot be drawn",
                do=f"Use data.pipeline: memory{' without ' + ' and '.join(self.streamed) if self.streamed else ''}, or a source with random access such as hfds/.")
        limit = f"{MEMORY_LIMIT / 2**30:.0f} GiB"
        if config.pipeline == "memory":
            return True, f"in memory, as asked: {size}"
        if sequential:
            return True, f"in memory, as the source can only be read from first to last: {size}"
        if config.pipeline == "streaming" or self.streamed:
            why = "as asked" if config.pipeline == "streaming" else f"for {' and '.join(self.streamed)}"
            return False, f"streamed by {config.num_workers} workers, {why}: {size}"
        if needed <= MEMORY_LIMIT:
            return True, f"in memory, as it takes at most {limit}: {size}"
        return False, f"streamed by {config.num_workers} workers, as it takes more than {limit}: {size}"

    def _split(self) -> tuple[dict[str, tuple[str, np.ndarray]], str]:
        """For each split the set it is part of and the numbers of its images there; and what is to be said of it."""
        fraction, have = self.config.val_fraction, self.sets
        everything = {split: (split, np.arange(len(images))) for split, images in have.items()}
        train, parts, note = everything["train"][1], dict(everything), ""
        if "val" in have and fraction:
            raise bad_value("data.val_fraction", got=fraction, expected=f"0, as {self.config.source} has its own val split", do="Delete it.")
        if "val" not in have and fraction:
            train = _balanced(have["train"].labels, train, 1 - fraction)
            held = np.setdiff1d(everything["train"][1], train)
            if not len(held):
                raise bad_value("data.val_fraction", got=fraction, expected="at least one image of some class", do="Raise it.", kind=DataRefused)
            parts["val"], note = ("train", held), f"; {len(held):,} training images held out for validation"
        elif "val" not in have and "test" not in have:
            raise bad_value(
                "data.val_fraction", got=0, expected=f"above 0, as {self.config.source} has neither a val nor a test split", do="Use 0.1 for a tenth.")
        elif "val" not in have:
            parts["val"], note = everything["test"], "; no val split: validation is on the test images"
        if "test" not in have:
            parts["test"], note = parts["val"], f"{note}; no test split: testing is on the val images"
        if self.config.train_fraction < 1:
            train = _balanced(have["train"].labels, train, self.config.train_fraction)
        return {"train": ("train", train), "val": parts["val"], "test": parts["test"]}, note


def _balanced(labels: np.ndarray, index: np.ndarray, fraction: float) -> np.ndarray:
    """A share of the images `index` of each class, at least one of each, in order; the same in every run."""
    mixed = index[np.argsort(draw(index, Draw.SPLIT), kind="stable")]
    chosen = [mine[: max(1, round(fraction * len(mine)))] for mine in (mixed[labels[mixed] == c] for c in np.unique(labels[index]))]
    return np.sort(np.concatenate(chosen))


def _moments(pixels: Tensor, index: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel of images (N, H, W, 3) uint8, as if pixels were in [0, 1], from exact counts."""
    counts = torch.zeros(3, 256, dtype=torch.int64)
    for part in torch.from_numpy(index).split(512):
        for channel, values in zip(counts, pixels[part].view(-1, 3).unbind(1)):
            channel += torch.bincount(values.int(), minlength=256)
    weights, values = counts.double() / counts[0].sum(), torch.arange(256, dtype=torch.float64) / 255
    mean = weights @ values
    std = (weights @ values**2 - mean**2).clamp(min=0).sqrt()
    return mean.tolist(), [s or 1.0 for s in std.tolist()]  # a constant channel stays constant


@rank_zero_only
def _say(text: str) -> None:
    print(text, flush=True)
