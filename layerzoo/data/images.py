"""One image: read, turned into 8-bit RGB, cut to size. Whatever is wrong with it is said with its name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from layerzoo.config import GREY
from layerzoo.errors import DataRefused, Refusal, bad_value

if TYPE_CHECKING:
    from torch import Tensor, nn

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")  # of pixels: EPS, say, is a program to be run
MAX_PIXELS = 2**26  # 201 MB as RGB; a file of 10 kB may claim any size


def read_image(file: Path | BinaryIO, name: str) -> Image.Image:
    """The first frame of an image file as 8-bit RGB.

    Args:
        file: path or open file.
        name: for messages.
    Raises:
        DataRefused: naming the image, if it is broken, truncated, above MAX_PIXELS, or of a range that cannot be known.
    """
    with named(name), Image.open(file, formats=_FORMATS) as image:
        return as_rgb(image, name)


def as_rgb(image: Image.Image, name: str) -> Image.Image:
    """8-bit RGB of any mode: 16 bits are scaled down to 8, transparent pixels lie on white, grey and CMYK are converted.

    Args:
        image: as opened.
        name: for messages.
    Raises:
        DataRefused: naming the image, if it is truncated, above MAX_PIXELS, or of a range that cannot be known.
    """
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise bad_value(
            f"image {name}", got=f"{width} x {height} pixels", expected=f"at most {MAX_PIXELS:,} pixels", do="Scale it down.", kind=DataRefused)
    with named(name):
        if image.mode.startswith("I"):
            image = _from_16_bit(image, name)
        if image.mode == "F":
            raise bad_value(
                f"image {name}", got="floating-point pixels", expected="8 or 16 bits per channel", do="Save it as PNG with 8 or 16 bits.", kind=DataRefused)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")


def as_grey(image: Image.Image) -> Image.Image:
    """The luma of an RGB image, in three equal channels."""
    return image.convert("L").convert("RGB")


def fit_image(image: Image.Image, size: int) -> Image.Image:
    """The central square, scaled to `size` pixels: shorter side to size, then centre crop; as it is if it has that size."""
    return image if image.size == (size, size) else ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)


@contextmanager
def named(name: str) -> Iterator[None]:
    """Turn any error of a decoder into a refusal that names the image: Pillow raises a dozen kinds, most without the path."""
    try:
        yield
    except Refusal:
        raise
    except Exception as error:
        raise bad_value(
            f"image {name}", got=f"{type(error).__name__}: {error}", expected="a whole image file", do="Repair or delete it.", kind=DataRefused) from error


def _from_16_bit(image: Image.Image, name: str) -> Image.Image:
    """The high byte, as Pillow itself does for 16-bit colour; its own convert() would clip at 255."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise bad_value(
            f"image {name}", got=f"pixels from {values.min()} to {values.max()}", expected="8 or 16 bits per channel",
            do="Save it as PNG with 8 or 16 bits.", kind=DataRefused)
    return Image.fromarray((values >> 8).astype(np.uint8))


def images_for(model: nn.Module, paths: list[str]) -> Tensor:
    """Image files as a batch (B, C, H, W) for a loaded model, cut, and normalised as its manifest says.

    Raises:
        DataRefused: for a file that is no whole image.
    """
    import torch

    images = [read_image(Path(path), path) for path in paths]
    if (model.manifest["recipe"] or {"data": {"source": ""}})["data"]["source"].startswith(GREY):
        images = [as_grey(image) for image in images]
    pixels = np.stack([np.asarray(fit_image(image, model.img_size[0])) for image in images])
    mean, std = (torch.tensor(model.manifest[key])[:, None, None] for key in ("mean", "std"))
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
