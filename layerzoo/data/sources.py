"""Where images come from: one string opens the embedded digits, a folder, or a data set that timm knows."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from layerzoo.config import GREY, LOCAL
from layerzoo.data.images import as_grey, read_image
from layerzoo.errors import DataRefused, bad_value

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
TIMM_PACKAGES = {"torch": "torchvision", "hfds": "datasets", "hfids": "datasets", "tfds": "tensorflow_datasets", "wds": "webdataset"}
SPLITS = {"train": ("train", "training"), "val": ("val", "validation", "valid"), "test": ("test", "testing")}


class ImageSet:
    """The images of one split, in a fixed order.

    Args:
        title: names the set in messages and cache files.
        labels: (N,) class numbers.
    """

    random_access = True

    def __init__(self, title: str, labels: np.ndarray):
        self.title, self.labels = title, np.asarray(labels, np.int64)
        self.origin = title  # what is cached replaces what was cached of the same origin

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, i: int) -> Image.Image:
        """Image i as 8-bit RGB. Raises DataRefused, naming it, if it cannot be read."""
        raise NotImplementedError(f"{type(self).__name__} must define read()")

    def name(self, i: int) -> str:
        """What messages call image i: its path where it has one."""
        return f"{i} of {self.title}"

    def fingerprint(self) -> str:
        """Changes whenever any image does; "" if that cannot be told, and then nothing is cached."""
        return ""

    def listing(self, index: np.ndarray) -> str:
        """Hash of which images these are, in which order and of which class: what the order of a resumed run rests on."""
        names = "\n".join(self.name(i) for i in index)
        return hashlib.sha256(names.encode(errors="surrogateescape") + self.labels[index].tobytes()).hexdigest()[:16]


class GreySet(ImageSet):
    """The images of another set in grey: three equal channels of luma (ITU-R BT.601, as Pillow has it).

    Args:
        images: the other set.
    """

    def __init__(self, images: ImageSet):
        super().__init__(f"{images.title}-grey", images.labels)
        self.images, self.origin, self.random_access = images, f"{GREY}{images.origin}", images.random_access

    def __iter__(self) -> Iterator[Image.Image]:
        return map(as_grey, self.images)

    def read(self, i: int) -> Image.Image:
        return as_grey(self.images.read(i))

    def name(self, i: int) -> str:
        return self.images.name(i)

    def listing(self, index: np.ndarray) -> str:
        return self.images.listing(index)

    def fingerprint(self) -> str:
        base = self.images.fingerprint()
        return base and f"{GREY}{base}"


@dataclass(frozen=True)
class Source:
    """An opened source.

    Fields:
        classes: names, by class number; empty if they are not known before all labels are read.
        splits: "train" always, "val" and "test" where the source has them.
    """

    classes: list[str]
    splits: dict[str, ImageSet]


def open_source(text: str) -> Source:
    """List what a source holds; images are read later.

    Args:
        text: "digits", "folder:PATH", "wds:PATH", or a name of timm.data.create_dataset after torch/, hfds/, hfids/, tfds/ or wds/; any of
            these after "grey:" for grey images.
    Raises:
        ValueError: for a string that is none of these, or a missing package.
        DataRefused: if the data is not there, or its classes do not match.
    """
    check_source(text)
    if text.startswith(GREY):
        source = open_source(text.removeprefix(GREY))
        return Source(source.classes, {split: GreySet(images) for split, images in source.splits.items()})
    if text == "digits":
        return _open_digits()
    if text.startswith("folder:"):
        return _open_folder(text)
    if text.startswith("wds:"):
        from layerzoo.data.shards import open_shards

        return open_shards(text)
    from layerzoo.data.timm_sources import open_timm

    return open_timm(text)


def check_source(text: str) -> None:
    """Refuse a string that names no source, or one whose package is not installed, before data is touched."""
    plain = text.removeprefix(GREY)
    scheme, _, rest = plain.partition("/")
    if plain == "digits" or (plain.startswith(LOCAL) and plain not in LOCAL):
        return
    if scheme not in TIMM_PACKAGES or not rest:
        raise bad_value(
            "data.source", got=repr(text), expected="digits, folder:PATH, wds:PATH, torch/NAME, hfds/NAME, hfids/NAME, tfds/NAME or wds/PATH",
            do="Write folder:PATH for a folder with train/ and test/ of one folder per class.")
    package = TIMM_PACKAGES[scheme]
    if importlib.util.find_spec(package) is None:
        raise bad_value(
            "data.source", got=f"{text!r} without the package {package}", expected=f"{package} installed, which reads {scheme}/",
            do=f"Run `python -m pip install {package.replace('_', '-')}`.")


def check_there(text: str) -> None:
    """Raise DataRefused for a folder of images or of shards that is not there or has no train split, before anything heavy is imported."""
    plain = text.removeprefix(GREY)
    if plain.startswith("folder:"):
        find_splits(plain)
    elif plain.startswith("wds:"):
        from layerzoo.data.shards import find_shards

        find_shards(plain)


class DigitsSet(ImageSet):
    """scikit-learn's handwritten digits, 8x8 in 17 greys, enlarged to 32x32."""

    def __init__(self, title: str, greys: np.ndarray, labels: np.ndarray):
        super().__init__(title, labels)
        self.greys = greys

    def read(self, i: int) -> Image.Image:
        return Image.fromarray(self.greys[i]).resize((32, 32), Image.Resampling.BICUBIC).convert("RGB")


class FolderSet(ImageSet):
    """Images below one folder per class, sorted by path."""

    def __init__(self, title: str, folder: Path, files: list[str], labels: list[int]):
        super().__init__(title, np.array(labels))
        self.folder, self.origin = folder, str(folder.resolve())
        self.files = np.array([os.fsencode(f) for f in files])  # one block: a list would be copied page by page into each worker

    def read(self, i: int) -> Image.Image:
        return read_image(Path(self.name(i)), self.name(i))

    def name(self, i: int) -> str:
        return os.path.join(self.folder, os.fsdecode(self.files[i]))

    def listing(self, index: np.ndarray) -> str:
        return hashlib.sha256(self.files[index].tobytes() + self.labels[index].tobytes()).hexdigest()[:16]

    def fingerprint(self) -> str:
        """Of paths, sizes, and times of change of content and of inode: the latter no program can set back."""
        digest = hashlib.sha256(self.origin.encode(errors="surrogateescape"))
        for file in self.files:
            stat = os.stat(os.path.join(os.fsencode(self.folder), file))
            digest.update(b"%b %d %d %d\n" % (file, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
        return digest.hexdigest()


def _open_digits() -> Source:
    """A fifth of each class, every fifth image, is the test set."""
    from sklearn.datasets import load_digits

    data = load_digits()
    greys = np.rint(data.images * (255 / 16)).astype(np.uint8)
    order = np.argsort(data.target, kind="stable")
    place = np.empty(len(order), np.int64)  # of each image among those of its class
    place[order] = np.concatenate([np.arange(n) for n in np.bincount(data.target)])
    parts = {"train": place % 5 != 4, "test": place % 5 == 4}
    return Source([str(c) for c in range(10)], {k: DigitsSet(f"digits {k}", greys[m], data.target[m]) for k, m in parts.items()})


def find_splits(text: str) -> tuple[Path, dict[str, str]]:
    """The folder of folder:PATH, and the name in it of each split that it has. Raises DataRefused if it has no train split."""
    root = Path(text.removeprefix("folder:")).expanduser()
    found = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    names = match_splits(found, text)
    if "train" not in names:
        raise bad_value(
            text, got=f"the folders {', '.join(found[:5])}" if found else "no folders" if root.is_dir() else "no such folder",
            expected="train/ with one folder per class, and val/ or test/ likewise", do="Correct the path, or move the images into train/ and test/.",
            kind=DataRefused)
    return root, names


def _open_folder(text: str) -> Source:
    root, names = find_splits(text)
    files = {split: _list_classes(root / name) for split, name in names.items()}
    classes = sorted(files["train"])
    empty = [c for c in classes if not files["train"][c]]
    if empty or not classes:
        raise bad_value(
            f"{root / names['train']}", got=f"no images of {_some(empty)}" if classes else "no folders",
            expected=f"images ({' '.join(SUFFIXES)}) in a folder per class", do="Add images or delete the empty folder.", kind=DataRefused)
    return Source(classes, {split: _folder_set(root, names[split], found, classes) for split, found in files.items()})


def _folder_set(root: Path, name: str, found: dict[str, list[str]], classes: list[str]) -> FolderSet:
    unknown, missing = sorted(set(found) - set(classes)), [c for c in classes if not found.get(c)]
    if unknown or len(missing) == len(classes):
        raise bad_value(
            f"{root / name}", got=f"the classes {_some(unknown)}, which train/ lacks" if unknown else "no images of any class",
            expected=f"the {len(classes)} classes of train/ ({_some(classes)})", do="Give both the same class folders.", kind=DataRefused)
    if missing:
        warnings.warn(f"{root / name} has no images of {_some(missing)}: its accuracy is over the other {len(classes) - len(missing)} classes", stacklevel=2)
    files = [(file, number) for number, c in enumerate(classes) for file in found.get(c, ())]
    return FolderSet(f"{root.name}-{name}", root / name, *map(list, zip(*files)))


def _list_classes(folder: Path) -> dict[str, list[str]]:
    """Image paths, relative to `folder`, of each folder in it."""
    return {p.name: sorted(_images(p, p.name)) for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".")}


def _images(folder: Path, path: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue  # among them macOS's ._ twins of images, which are not images
            if entry.is_dir():
                yield from _images(entry.path, f"{path}/{entry.name}")
            elif entry.name.lower().endswith(SUFFIXES):
                yield f"{path}/{entry.name}"


def match_splits(found: list[str], where: str) -> dict[str, str]:
    """The source's own name of each of our splits that it has."""
    matched = {split: [n for n in names if n in found] for split, names in SPLITS.items()}
    for split, names in matched.items():
        if len(names) > 1:
            raise bad_value(where, got=" and ".join(names), expected=f"one {split} split", do="Rename or remove the other.", kind=DataRefused)
    return {split: names[0] for split, names in matched.items() if names}


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
