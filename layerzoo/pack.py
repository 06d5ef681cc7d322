"""The verb `data`: a folder of images as shards that any machine reads fast, and shards that are proved whole."""

from __future__ import annotations

import argparse
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from layerzoo.errors import DataRefused, bad_value

if TYPE_CHECKING:
    from layerzoo.data.sources import FolderSet

_END = 20 * 512  # bytes: the size of a tar is a multiple


def add_data(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the verb to a parser.

    Args:
        verb: adds one of a name, what it calls and its help.
    """
    data = verb("data", _data, "pack: a folder of images into shards, for wds:PATH; check: that shards are what was written")
    data.add_argument("action", choices=["pack", "check"])
    data.add_argument("source", help="folder:PATH to pack; the folder of shards to check")
    data.add_argument("--out", type=Path, help="of pack: a new folder")
    data.add_argument("--shard-mb", type=int, default=256, help="of pack: largest shard in MB, unless one image is larger; 256")


def _data(args: argparse.Namespace) -> None:
    if args.action == "check":
        print(f"{check(Path(args.source).expanduser()):,} shards are whole")
        return
    if args.out is None:
        raise bad_value("--out", got="none", expected="a new folder", do=f"layerzoo data pack {args.source} --out DIR")
    for split, (images, shards) in pack(args.source, args.out, args.shard_mb).items():
        print(f"{split:5}  {images:,} images in {shards:,} shards")
    print(f"next  --data.source wds:{args.out}")


def pack(source: str, out: Path, shard_mb: int = 256) -> dict[str, tuple[int, int]]:
    """Copy the images of a folder into shards of the WebDataset layout with an index, whole or not at all.

    Files are copied byte for byte, in the order of `folder:`, so that a run on wds:OUT is the run on the folder. Packed twice, the
    shards are the same bytes.

    Args:
        source: folder:PATH.
        out: a new folder.
        shard_mb: largest shard in MB (10^6 bytes), unless one image is larger.
    Returns:
        images and shards of each split.
    Raises:
        ValueError: for another source, an `out` that exists and a shard_mb below 1.
        OSError: if there is no room.
    """
    from layerzoo.checkpoint import staged
    from layerzoo.data.sources import open_source
    from layerzoo.train.storage import check_room, stored

    if not source.startswith("folder:"):
        raise bad_value("source", got=repr(source), expected="folder:PATH", do="Other sources have shards of their own or fit in memory.")
    if shard_mb < 1:
        raise bad_value("--shard-mb", got=shard_mb, expected="a number of MB >= 1", do="The usual is 256.")
    if os.path.lexists(out):
        raise bad_value(str(out), got="a path that exists", expected="a new folder", do="Delete it or choose another name.")
    opened = open_source(source)
    files = {split: [(os.stat(path).st_size, Path(path)) for path in map(images.name, range(len(images)))] for split, images in opened.splits.items()}
    need = sum(_taken(size) for found in files.values() for size, _ in found)
    check_room("the shards take", need, next(parent for parent in out.absolute().parents if parent.is_dir()))
    done = {}
    with stored(out, need), staged(out) as temp:
        for split, found in files.items():
            (temp / split).mkdir()
            shards = _write(temp / split, split, found, opened.splits[split], opened.classes, shard_mb * 10**6)
            done[split] = len(found), shards
    return done


def check(folder: Path) -> int:
    """Number of shards below a folder, each of which has the size and SHA-256 that its index states.

    Raises:
        DataRefused: naming the shards that have not, or a folder without an index.
    """
    from layerzoo.data.shards import INDEX, stated
    from layerzoo.train.storage import entry

    found = sorted(folder.glob(f"*/{INDEX}"))
    if not found:
        raise bad_value(str(folder), got=f"no */{INDEX}", expected="a folder that `layerzoo data pack` wrote", do="Correct the path.", kind=DataRefused)
    count, damaged = 0, []
    for path in found:
        for shard in stated(path)[0]["shards"]:
            place, count = path.parent / shard["name"], count + 1
            if not place.is_file() or {"name": shard["name"]} | entry(place) != shard:
                damaged.append(str(place))
    if damaged:
        raise bad_value(
            ", ".join(damaged[:5]), got=f"{len(damaged)} of {count} shards missing or changed", expected="the bytes that their index states",
            do="Fetch or write them again.", kind=DataRefused)
    return count


def _write(folder: Path, split: str, files: list[tuple[int, Path]], images: FolderSet, classes: list[str], largest: int) -> int:
    """Shards and index of one split; the number of shards."""
    import numpy as np
    from safetensors.numpy import save

    from layerzoo.checkpoint import write_synced
    from layerzoo.data.shards import ARRAYS, FORMAT, INDEX
    from layerzoo.train.storage import entry

    shards, places = [], []
    while len(places) < len(files):
        path = folder / f"{split}-{len(shards):06d}.tar"
        with _tar(path) as tar:
            for i in range(len(places), len(files)):
                size, source = files[i]
                if tar.offset and tar.offset + _taken(size) + _END > largest:
                    break
                _add(tar, f"{i:08d}.cls", str(int(images.labels[i])).encode())
                places.append((len(shards), tar.offset + 512, size))
                _add(tar, f"{i:08d}{source.suffix.lower()}", _whole(source, size))
        shards.append({"name": path.name} | entry(path))
    about = {"format": FORMAT, "classes": classes, "shards": shards}
    names = images.files.view(np.uint8).reshape(len(files), -1)
    columns = dict(zip(("shard", "offset", "size"), np.array(places, np.int64).T)) | {"label": images.labels, "name": names}
    arrays = {key: np.ascontiguousarray(columns[key], kind) for key, kind in ARRAYS.items()}
    write_synced(folder / INDEX, save(arrays, {"layerzoo": json.dumps(about)}))
    return len(shards)


def _taken(size: int) -> int:
    """Bytes at most that an image of `size` bytes and its class take of a tar: two headers and the class, in blocks of 512."""
    return 4 * 512 + size


@contextmanager
def _tar(path: Path) -> Iterator[tarfile.TarFile]:
    with open(path, "xb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            yield tar
        file.flush()
        os.fsync(file.fileno())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """With the same owner, mode and time everywhere."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _whole(path: Path, size: int) -> bytes:
    data = path.read_bytes()
    if len(data) != size:
        raise bad_value(
            str(path), got=f"{len(data):,} bytes", expected=f"{size:,} bytes, as at the start", do="Pack a folder that nothing writes to.",
            kind=DataRefused)
    return data
