"""A whole split as one uint8 tensor: decoded by several processes, kept in the user's cache folder while no image changes."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from layerzoo.data.images import fit_image
from layerzoo.data.sources import ImageSet
from layerzoo.data.unreadable import lasting
from layerzoo.data.workers import TIMEOUT, cores, pulse, watched
from layerzoo.errors import DataRefused, bad_value
from layerzoo.paths import cache_folder

_CHUNK = 64  # images that a worker passes on at once, a matter of seconds even for photographs
_CHUNK_BYTES = 2**20  # or fewer: containers often have 64 MB of shared memory
_ALONE = 2000  # images that one process decodes before others would have started
_STALE = 24 * 3600  # seconds after which an unfinished cache file is swept
_FORMAT = "1"  # of the pixels: raise it when decoding or cutting changes


def load_pixels(images: ImageSet, size: int, cache: bool, broken: dict[int, str] | None = None) -> Tensor:
    """All images of a split, cut to a square, (N, size, size, 3) uint8.

    Args:
        images: the split.
        size: side in pixels.
        cache: take them from the cache if no image has changed since, else put them there, if none is broken.
        broken: takes the reason for each image that is broken, by its number, and that is left black; None = none may be.
    Raises:
        DataRefused: naming the images that cannot be read, or if some change meanwhile.
    """
    fingerprint = images.fingerprint() if cache else ""
    if not fingerprint:
        return decode(images, size, broken)
    key = _sha256(f"{_FORMAT} {PIL.__version__} {size} {fingerprint}".encode())
    place = f"{re.sub('[^A-Za-z0-9-]+', '_', images.title)}-{size}px-{_sha256(images.origin.encode(errors='surrogateescape'))[:8]}"
    path = cache_folder() / "pixels" / f"{place}-{key[:16]}.safetensors"
    pixels = _stored(path, key)
    if pixels is None:
        pixels = decode(images, size, broken)
        if images.fingerprint() != fingerprint:
            raise bad_value(images.title, got="images that changed while they were read", expected="files at rest", do="Start again.", kind=DataRefused)
        if not broken:
            _store(pixels, path, key, place)
    return pixels


def decode(images: ImageSet, size: int, broken: dict[int, str] | None = None) -> Tensor:
    """All images of a split, cut to a square, (N, size, size, 3) uint8, by as many processes as there are cores.

    Args:
        images: the split.
        size: side in pixels.
        broken: as for `load_pixels`.
    Raises:
        DataRefused: naming the images that cannot be read, all of them where images are read in any order.
    """
    pixels = torch.empty(len(images), size, size, 3, dtype=torch.uint8)
    start = shown = time.monotonic()
    done, wrong = 0, {}
    for part, errors in _in_parallel(images, size) if images.random_access else _in_order(images, size):
        pixels[done : done + len(part)] = part
        done += len(part)
        wrong |= errors
        if sys.stderr.isatty() and time.monotonic() - shown > 0.2:
            shown = time.monotonic()
            print(f"\rdecoding {images.title}: {done:,} of {len(images):,} ", end="", file=sys.stderr, flush=True)
    if broken is not None and all(lasts for _, lasts in wrong.values()):
        broken.update({i: reason for i, (reason, _) in wrong.items()})
    elif wrong:
        raise bad_value(
            images.title, got=f"{len(wrong):,} of {len(images):,} images that cannot be read", expected="none",
            do="\n".join(["The first:", *[reason for reason, _ in wrong.values()][:5]]), kind=DataRefused)
    if len(images) >= _ALONE:
        newline = "\r" if sys.stderr.isatty() else ""
        print(f"{newline}decoded {images.title}: {done:,} images in {time.monotonic() - start:.1f} s", file=sys.stderr)
    return pixels


class _Chunks(Dataset):
    """Decodes a range of images at a time. Errors return as values, by number: torch would raise the first one below a worker's traceback."""

    def __init__(self, images: ImageSet, size: int):
        self.images, self.size, self.done = images, size, pulse()

    def __getitem__(self, chunk: range) -> tuple[Tensor, dict[int, tuple[str, bool]]]:
        pixels, errors = torch.zeros(len(chunk), self.size, self.size, 3, dtype=torch.uint8), {}
        for row, i in zip(pixels.numpy(), chunk):
            try:
                row[:] = np.asarray(fit_image(self.images.read(i), self.size))
            except DataRefused as error:
                errors[i] = str(error), lasting(error)  # here, since its cause does not leave a worker
            self.done += 1
        return pixels, errors


def _in_parallel(images: ImageSet, size: int) -> Iterator[tuple[Tensor, dict[int, tuple[str, bool]]]]:
    step = min(_CHUNK, max(1, _CHUNK_BYTES // (3 * size**2)))
    chunks = [range(i, min(i + step, len(images))) for i in range(0, len(images), step)]
    workers = 0 if len(images) < _ALONE else min(16, cores())
    decoder = _Chunks(images, size)
    loader = DataLoader(decoder, sampler=chunks, batch_size=None, num_workers=workers)
    return watched(loader, decoder.done, TIMEOUT, lambda k: f"{images.name(chunks[k][0])} ... {images.name(chunks[k][-1])}")


def _in_order(images: Iterable[Image.Image], size: int) -> Iterator[tuple[Tensor, dict[int, tuple[str, bool]]]]:
    for image in images:
        yield torch.from_numpy(np.array(fit_image(image, size)))[None], {}


def _stored(path: Path, key: str) -> Tensor | None:
    """The cached tensor, if it is there and every bit of it is right."""
    if not os.path.exists(path):
        return None
    try:
        with safe_open(path, "pt") as file:
            pixels, about = file.get_tensor("pixels"), file.metadata()
    except (OSError, SafetensorError) as error:
        _warn_once(f"cache file {path} cannot be read ({error}): its images are decoded anew")
        return None
    if about != {"key": key, "sha256": _sha256(pixels.numpy())}:
        _warn_once(f"cache file {path} is damaged: its images are decoded anew")
        return None
    return pixels


def _store(pixels: Tensor, path: Path, key: str, place: str) -> None:
    """Write under another name, then rename: the file is whole or not there. Replaces what was cached of this folder before."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in path.parent.glob(".*.tmp"):
            if time.time() - old.stat().st_mtime > _STALE:
                old.unlink(missing_ok=True)
        save_file({"pixels": pixels}, temporary, {"key": key, "sha256": _sha256(pixels.numpy())})
        os.replace(temporary, path)
        for old in path.parent.glob(f"{place}-*.safetensors"):
            if old != path:
                old.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        _warn_once(f"cache folder {path.parent} cannot be written ({error}): images are decoded at each start. Set LAYERZOO_CACHE to another folder.")
    finally:
        if os.path.exists(temporary):
            temporary.unlink()


def _sha256(content: bytes | np.ndarray) -> str:
    return hashlib.sha256(content).hexdigest()


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=3)
