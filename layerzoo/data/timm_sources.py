"""Sources that timm.data.create_dataset opens: torchvision's data sets, the Hugging Face hub, TensorFlow data sets, WebDataset."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import timm.data
from PIL import Image
from timm.data.readers.reader import Reader
from torch.utils.data import Dataset, IterableDataset

from layerzoo.data.images import as_rgb, named, read_image
from layerzoo.data.sources import ImageSet, Source, match_splits
from layerzoo.errors import DataRefused, bad_value, nearest
from layerzoo.paths import cache_folder

T = TypeVar("T")

_EVALUATED = {  # what each of torchvision's data sets calls its second split
    "cifar10": "test", "cifar100": "test", "mnist": "test", "kmnist": "test", "fashion_mnist": "test", "imagenet": "val", "places365": "val"}


class TorchSet(ImageSet):
    """A data set of torchvision."""

    def __init__(self, title: str, dataset: Dataset):
        super().__init__(title, dataset.targets)
        self.dataset = dataset

    def read(self, i: int) -> Image.Image:
        with named(self.name(i)):
            return as_rgb(self.dataset[i][0], self.name(i))


class HubSet(ImageSet):
    """A data set of the package datasets, through timm's reader."""

    def __init__(self, title: str, reader: Reader):
        super().__init__(title, reader.dataset[reader.label_key][:])
        self.reader = reader

    def read(self, i: int) -> Image.Image:
        with named(self.name(i)):
            file = self.reader[i][0]
        with file:
            return read_image(file, self.name(i))

    def fingerprint(self) -> str:
        return self.reader.dataset._fingerprint


class SequentialSet(ImageSet):
    """Images that can only be read from first to last: `read` is not there, and labels are known once all are read."""

    random_access = False

    def __init__(self, title: str, dataset: IterableDataset):
        super().__init__(title, [-1] * len(dataset))
        self.dataset = dataset
        # timm would give each rank of a running process group another share; layerzoo shares out the batches itself
        dataset.reader.dist_rank, dataset.reader.dist_num_replicas = 0, 1

    def __iter__(self) -> Iterator[Image.Image]:
        """All images, filling in the labels. Raises DataRefused if there are more or fewer than the set says."""
        count = 0
        for image, label in self.dataset:
            if label < 0:
                raise bad_value(self.name(count), got="no label", expected="a class number", do="Use hfds/, which leaves unlabelled splits out.", kind=DataRefused)
            if count < len(self):
                self.labels[count] = label
                yield as_rgb(image, self.name(count))
            count += 1
        if count != len(self):
            raise bad_value(
                self.title, got=f"{count} readable images", expected=f"{len(self)}, as its description says", do="Look for broken ones.", kind=DataRefused)


def open_timm(text: str) -> Source:
    """List a source whose name starts with torch/, hfds/, hfids/, tfds/ or wds/, downloading it where timm does.

    Raises:
        ValueError: for a name of torch/ that is not supported.
        DataRefused: if it cannot be opened, or has no labelled training split.
    """
    scheme, _, name = text.partition("/")
    classes, sets = _OPEN[scheme](text, name)
    for split in [split for split, images in sets.items() if images.random_access and images.labels.min(initial=0) < 0]:
        warnings.warn(f"{sets.pop(split).title} has no labels: it is left out", stacklevel=2)
    if "train" not in sets:
        raise bad_value(text, got=f"the splits {', '.join(sets) or 'none'}", expected="a labelled train split", do="Choose another source.", kind=DataRefused)
    return Source(classes, sets)


def _open_torch(text: str, name: str) -> tuple[list[str], dict[str, ImageSet]]:
    if name not in _EVALUATED:
        raise bad_value(
            "data.source", got=repr(text), expected=f"a known name such as torch/{nearest(name, _EVALUATED)[0]}",
            do=f"After torch/ stands one of {', '.join(_EVALUATED)}; for a folder write folder:PATH.")
    root = str(cache_folder() / "datasets")
    made = {split: _create(text, root=root, split=split, download=True) for split in ("train", _EVALUATED[name])}
    classes = [c if isinstance(c, str) else c[0] for c in made["train"].classes]  # ImageNet's are tuples of synonyms
    return classes, {split: TorchSet(f"{name}-{split}", dataset) for split, dataset in made.items()}


def _open_hub(text: str, name: str) -> tuple[list[str], dict[str, ImageSet]]:
    import datasets

    found = _attempt(text, lambda: datasets.load_dataset(name))
    features = next(iter(found.values())).features
    keys = {
        key: next((k for k, feature in features.items() if isinstance(feature, kind)), default)
        for key, kind, default in (("input_key", datasets.Image, "image"), ("target_key", datasets.ClassLabel, "label"))}
    if text.startswith("hfds/"):
        return _open_splits(text, name, list(found), HubSet, **keys)
    return _open_splits(text, name, list(found), SequentialSet, download=True, **keys)


def _open_tensorflow(text: str, name: str) -> tuple[list[str], dict[str, ImageSet]]:
    import tensorflow_datasets

    found = _attempt(text, lambda: list(tensorflow_datasets.builder(name).info.splits))
    return _open_splits(text, name, found, SequentialSet, download=True)


def _open_webdataset(text: str, name: str) -> tuple[list[str], dict[str, ImageSet]]:
    root = Path(name).expanduser()
    found = _attempt(text, lambda: list(json.loads((root / "_info.json").read_text(encoding="utf-8"))["splits"]))
    return _open_splits("wds/", root.name, found, SequentialSet, root=str(root))


def _open_splits(text: str, name: str, found: list[str], kind: type, **options) -> tuple[list[str], dict[str, ImageSet]]:
    made = {split: _create(text, split=own, **options) for split, own in match_splits(found, text).items()}
    classes = list(made["train"].reader.class_to_idx) if "train" in made else []
    return classes, {split: kind(f"{name}-{split}", made[split].reader if kind is HubSet else made[split]) for split in made}


def _create(text: str, **options) -> Dataset:
    return _attempt(text, lambda: timm.data.create_dataset(text, **options))


def _attempt(text: str, call: Callable[[], T]) -> T:
    """The result of `call`; what timm and the packages below it raise becomes a refusal that names the source."""
    try:
        return call()
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise bad_value(
            "data.source", got=f"{text!r}, which cannot be opened ({type(error).__name__}: {reason})", expected="data that is here or can be downloaded",
            do="Without a network, write folder:PATH for images that are here.", kind=DataRefused) from error


_OPEN = {"torch": _open_torch, "hfds": _open_hub, "hfids": _open_hub, "tfds": _open_tensorflow, "wds": _open_webdataset}
