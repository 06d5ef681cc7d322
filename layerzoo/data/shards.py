"""Images in shards: tar files of the WebDataset layout, read at any place, so that order and resume are those of every other source.

An index beside the shards says where each image lies; `layerzoo data pack` writes it. Without one the headers of the shards are read.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open

from layerzoo.data.images import named, read_image
from layerzoo.data.sources import SPLITS, SUFFIXES, ImageSet, Source, match_splits
from layerzoo.errors import DataRefused, bad_value

INDEX, FORMAT = "index.safetensors", "1"
ARRAYS = {"shard": np.int32, "offset": np.int64, "size": np.int64, "label": np.int64, "name": np.uint8}  # (N,), the name (N, longest)
BLOCK = 512  # bytes, of a tar
_AGAIN = "Write the shards again, with `layerzoo data pack`."


class ShardSet(ImageSet):
    """Images at known places of shards.

    Args:
        title: names the set in messages and cache files.
        shards: their paths.
        arrays: by the keys of ARRAYS: which shard each image lies in, its first byte there, its bytes, its class and its name.
    """

    def __init__(self, title: str, shards: list[Path], arrays: dict[str, np.ndarray]):
        super().__init__(title, arrays["label"])
        self.shards, self.origin = [str(path.resolve()) for path in shards], str(shards[0].parent.resolve())
        self.shard, self.offset, self.size = (arrays[key] for key in ("shard", "offset", "size"))
        self.names = arrays["name"].view(f"S{arrays['name'].shape[1]}")[:, 0]  # one block: a list would be copied page by page into each worker

    def read(self, i: int) -> Image.Image:
        with named(self.name(i)), open(self.shards[self.shard[i]], "rb") as file:
            file.seek(self.offset[i])
            data = file.read(self.size[i])
        return read_image(io.BytesIO(data), self.name(i))

    def name(self, i: int) -> str:
        return f"{self.shards[self.shard[i]]}: {os.fsdecode(self.names[i])}"

    def listing(self, index: np.ndarray) -> str:
        return hashlib.sha256(self.names[index].tobytes() + self.labels[index].tobytes()).hexdigest()[:16]

    def fingerprint(self) -> str:
        """Of the shards' paths, sizes, and times of change of content and of inode, and of where the images lie."""
        digest = hashlib.sha256(b"".join(array.tobytes() for array in (self.shard, self.offset, self.size, self.labels)))
        for path in self.shards:
            stat = os.stat(path)
            digest.update(b"%b %d %d %d\n" % (os.fsencode(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
        return digest.hexdigest()


def find_shards(text: str) -> tuple[Path, dict[str, list[Path]]]:
    """The folder of wds:PATH and the shards of each split: those of its folder, or of PATH itself with the split in their names.

    Raises:
        DataRefused: for no shards of a train split, or of another that has a folder.
    """
    root = Path(text.removeprefix("wds:")).expanduser()
    folders = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    names = match_splits(folders, text)
    shards = {split: sorted((root / name).glob("*.tar")) for split, name in names.items()}
    for path in () if names else sorted(root.glob("*.tar")):
        words = set(re.split("[^a-z]+", path.name.lower()))
        for split in [split for split, own in SPLITS.items() if words & set(own)][:1]:
            shards.setdefault(split, []).append(path)
    empty = [str(root / names[split]) for split, found in shards.items() if not found]
    if empty or "train" not in shards:
        raise bad_value(
            text, got=f"no .tar in {', '.join(empty)}" if empty else "no shards of a train split" if root.is_dir() else "no such folder",
            expected="uncompressed .tar files in train/ and val/ or test/, or named such as train-000000.tar",
            do="Correct the path, or pack a folder with `layerzoo data pack`.", kind=DataRefused)
    return root, shards


def open_shards(text: str) -> Source:
    """List what the shards of wds:PATH hold.

    Raises:
        DataRefused: for shards that are not there or damaged, that an index does not match, or whose classes do not.
    """
    root, shards = find_shards(text)
    classes, sets = {}, {}
    for split, paths in shards.items():
        home = paths[0].parent
        classes[split], arrays = read_index(home, paths) if (home / INDEX).is_file() else ([], _scan_all(paths))
        sets[split] = ShardSet(f"{root.name}-{split}", paths, arrays)
    count = len(classes["train"]) or int(sets["train"].labels.max()) + 1
    for split, images in sets.items():
        if images.labels.min() < 0 or images.labels.max() >= count or classes[split] != classes["train"]:
            raise bad_value(
                f"{text}: {split}", got=f"classes {images.labels.min()} to {images.labels.max()}, {len(classes[split]) or 'no'} names",
                expected=f"classes 0 to {count - 1} of train, named likewise", do=_AGAIN, kind=DataRefused)
    return Source(classes["train"], sets)


def read_index(folder: Path, paths: list[Path]) -> tuple[list[str], dict[str, np.ndarray]]:
    """Names of the classes, and where each image lies, checked against the shards' names and sizes.

    Raises:
        DataRefused: for an index that is damaged or not of these shards.
    """
    path = folder / INDEX
    about, arrays = stated(path)
    found = {p.name: p.stat().st_size for p in paths}
    told = {shard["name"]: shard["bytes"] for shard in about["shards"]}
    if told != found:
        name = sorted(name for name in {*told, *found} if told.get(name) != found.get(name))[0]
        sizes = [f"{sizes[name]:,} bytes" if name in sizes else "no such shard" for sizes in (found, told)]
        raise bad_value(f"{folder / name}", got=sizes[0], expected=f"{sizes[1]}, as {path} states", do=_AGAIN, kind=DataRefused)
    if [shard["name"] for shard in about["shards"]] != [p.name for p in paths]:
        _refuse(path, "shards that are not in the order of their names")
    shard, offset, size = (arrays[key] for key in ("shard", "offset", "size"))
    ends = np.array(list(told.values()), np.int64)
    if not (len(shard) and shard.min() >= 0 and shard.max() < len(ends) and min(offset.min(), size.min()) >= 0 and (size <= ends[shard] - offset).all()):
        _refuse(path, "places outside of the shards")
    return about["classes"], arrays


def stated(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """What an index states of classes and shards, and its arrays. Raises DataRefused for one that is damaged."""
    try:
        with safe_open(path, "np") as file:
            about = json.loads((file.metadata() or {})["layerzoo"])
            arrays = {key: file.get_tensor(key) for key in ARRAYS}
        if about["format"] != FORMAT:
            _refuse(path, f"format {about['format']!r}")
        shards = [{key: kind(shard[key]) for key, kind in (("name", str), ("bytes", int), ("sha256", str))} for shard in about["shards"]]
        about = {"classes": [str(name) for name in about["classes"]], "shards": shards}
    except DataRefused:
        raise
    except (SafetensorError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        _refuse(path, f"{type(error).__name__}: {error}")
    shapes = {key: (array.ndim, len(array), array.dtype) for key, array in arrays.items() if array.ndim}
    if shapes != {key: (2 if key == "name" else 1, arrays["label"].size, kind) for key, kind in ARRAYS.items()} or not arrays["name"].size:
        _refuse(path, f"arrays {shapes}")
    return about, arrays


def _refuse(path: Path, got: str) -> NoReturn:
    raise bad_value(str(path), got=got, expected=f"an index of shards, format {FORMAT}", do=_AGAIN, kind=DataRefused)


def _scan_all(paths: list[Path]) -> dict[str, np.ndarray]:
    found = [(number, *image) for number, path in enumerate(paths) for image in scan(path)]
    names, *columns = zip(*((os.fsencode(name), *rest) for *rest, name in found))
    names = np.array(names)
    return {"name": names.view(np.uint8).reshape(len(names), -1)} | {key: np.array(c, ARRAYS[key]) for key, c in zip(ARRAYS, columns)}


def scan(path: Path) -> list[tuple[int, int, int, str]]:
    """First byte, bytes, class and name of each image of a shard, from its headers; the class is the number in the file KEY.cls beside it.

    Raises:
        DataRefused: for a tar that is cut or damaged, and for a key without one image and one class.
    """
    samples: dict[str, dict[str, tuple[int, int, str]]] = {}
    total, last = path.stat().st_size, -1
    with open(path, "rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    if not last < member.offset_data <= total - member.size or member.size < 0:
                        _cut(path, f"{member.name} of {member.size:,} bytes at byte {member.offset_data:,} of {total:,}")
                    last = member.offset_data
                    if member.isdir():
                        continue
                    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
                        _cut(path, f"{member.name}, which is no plain file")
                    parent, _, base = member.name.rpartition("/")
                    key, _, kind = base.partition(".")
                    if samples.setdefault(f"{parent}/{key}", {}).setdefault(kind.lower(), place := (member.offset_data, member.size, member.name)) != place:
                        _cut(path, f"{member.name} twice")
                file.seek(tar.offset)  # where it stopped, which it does at a broken header too, in silence
                if file.read(BLOCK) != bytes(BLOCK):
                    _cut(path, f"no header of a file and no end at byte {tar.offset:,} of {total:,}")
        except DataRefused:
            raise
        except (tarfile.TarError, ValueError, OverflowError, RecursionError, MemoryError) as error:  # the last: of a name said to be longer than memory
            _cut(path, f"{type(error).__name__}: {error}", error)
        return [_sample(file, path, key, parts) for key, parts in samples.items()] or _cut(path, "no images")


def _sample(file: io.BufferedReader, path: Path, key: str, parts: dict[str, tuple[int, int, str]]) -> tuple[int, int, int, str]:
    images = [place for kind, place in parts.items() if f".{kind}" in SUFFIXES]
    if len(images) != 1 or "cls" not in parts:
        _cut(path, f"{' '.join(sorted(parts))} of {key.removeprefix('/')}")
    offset, size, name = parts["cls"]
    file.seek(offset)
    text = file.read(min(size, 20)).strip()
    if not re.fullmatch(rb"\d{1,9}", text):
        _cut(path, f"{text!r} in {name}")
    return *images[0][:2], int(text), images[0][2]


def _cut(path: Path, got: str, error: Exception | None = None) -> NoReturn:
    raise bad_value(
        str(path), got=got, expected="a whole uncompressed tar, for each key one image and its class, a number, in KEY.cls", do="Fetch or write it again.",
        kind=DataRefused) from error
