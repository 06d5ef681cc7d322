"""Every kind of image becomes 8-bit RGB with the right values, or is refused by name."""

import io
import re

import numpy as np
import pytest
from folders import picture
from PIL import Image

from layerzoo.data import images
from layerzoo.data.images import as_rgb, fit_image, read_image
from layerzoo.errors import DataRefused

RAMP16 = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)


def read(image, suffix, tmp_path):
    path = tmp_path / f"x.{suffix}"
    image.save(path)
    return np.asarray(read_image(path, str(path)))


def grey(values):
    return np.repeat(values[:, :, None], 3, axis=2)


def test_colour_is_untouched(tmp_path):
    assert np.array_equal(read(Image.fromarray(picture(0)), "png", tmp_path), picture(0))


def test_grey_and_black_and_white(tmp_path):
    values = picture(1, channels=1)
    assert np.array_equal(read(Image.fromarray(values), "png", tmp_path), grey(values))
    bits = np.where(values > 127, 255, 0).astype(np.uint8)
    assert np.array_equal(read(Image.fromarray(bits).convert("1"), "png", tmp_path), grey(bits))


def test_palette(tmp_path):
    image = Image.fromarray(picture(2, channels=1) % 16).convert("P")
    assert np.array_equal(read(image, "png", tmp_path), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("alpha, expected", [(255, (200, 10, 60)), (0, (255, 255, 255)), (51, (244, 206, 216))])
def test_transparent_pixels_lie_on_white(alpha, expected, tmp_path):
    image = Image.new("RGBA", (3, 3), (200, 10, 60, alpha))
    assert np.array_equal(read(image, "png", tmp_path)[1, 1], expected)


def test_transparency_of_palette_and_grey(tmp_path):
    palette = Image.new("P", (3, 3), 1)
    palette.putpalette([0, 0, 0, 200, 10, 60])
    palette.info["transparency"] = 1
    palette.save(tmp_path / "p.png", transparency=1)
    assert np.array_equal(np.asarray(read_image(tmp_path / "p.png", "p"))[0, 0], (255, 255, 255))
    assert np.array_equal(read(Image.new("LA", (3, 3), (40, 0)), "png", tmp_path)[0, 0], (255, 255, 255))


def test_cmyk_jpeg(tmp_path):
    image = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    cyan = read(image, "jpg", tmp_path)[4, 4].astype(int)
    assert np.abs(cyan - (0, 255, 255)).max() <= 3


@pytest.mark.parametrize("suffix, dtype", [("png", np.uint16), ("tiff", np.uint16), ("tiff", ">u2"), ("pgm", np.uint16)])
def test_16_bits_are_scaled_not_clipped(suffix, dtype, tmp_path):
    path = tmp_path / f"x.{suffix}"
    if suffix == "pgm":
        path.write_bytes(b"P5 8 8 65535\n" + RAMP16.astype(">u2").tobytes())
    else:
        Image.fromarray(RAMP16.astype(dtype)).save(path)
    assert Image.open(path).mode.startswith("I")
    assert np.array_equal(np.asarray(read_image(path, "x")), grey((RAMP16 >> 8).astype(np.uint8)))


def test_first_frame_of_an_animation(tmp_path):
    first, second = (Image.new("RGB", (4, 4), c) for c in ((255, 0, 0), (0, 0, 255)))
    first.save(tmp_path / "x.gif", save_all=True, append_images=[second])
    assert np.array_equal(np.asarray(read_image(tmp_path / "x.gif", "x"))[0, 0], (255, 0, 0))


def broken(kind, tmp_path):
    path = tmp_path / f"{kind}.{'jpg' if 'jpg' in kind else 'png'}"
    if kind == "truncated png" or kind == "truncated jpg":
        Image.fromarray(picture(3, (64, 64))).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "bad checksum png":
        Image.fromarray(picture(3, (64, 64))).save(path)
        content = bytearray(path.read_bytes())
        content[60] ^= 1
        path.write_bytes(content)
    elif kind == "empty png":
        path.write_bytes(b"")
    elif kind == "text jpg":
        path.write_text("<html>404</html>")
    elif kind == "folder png":
        path.mkdir()
    return path


@pytest.mark.parametrize("kind", ["truncated png", "truncated jpg", "bad checksum png", "empty png", "text jpg", "folder png", "missing png"])
def test_broken_files_are_refused_by_path(kind, tmp_path):
    path = broken(kind, tmp_path)
    with pytest.raises(DataRefused, match=re.escape(f"image {path}: got ")) as refusal:
        read_image(path, str(path))
    assert str(refusal.value).endswith(", expected a whole image file. Repair or delete it.")
    assert refusal.value.exit_code == 65


def test_too_many_pixels(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 63)
    with pytest.raises(DataRefused, match=re.escape("image big: got 8 x 8 pixels, expected at most 63 pixels. Scale it down.")):
        as_rgb(Image.fromarray(picture(0)), "big")


def test_small_file_that_claims_to_be_huge(tmp_path):
    Image.new("1", (10000, 9000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 20000
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(DataRefused, match=re.escape("got 10000 x 9000 pixels, expected at most 67,108,864 pixels")):
        read_image(tmp_path / "bomb.png", "bomb.png")


def test_unknown_ranges(tmp_path):
    for values, said in ((np.full((2, 2), -5, np.int32), "pixels from -5 to -5"), (np.full((2, 2), 70000, np.int32), "pixels from 70000 to 70000")):
        with pytest.raises(DataRefused, match=re.escape(f"image x: got {said}, expected 8 or 16 bits per channel. Save it as PNG with 8 or 16 bits.")):
            as_rgb(Image.fromarray(values), "x")
    with pytest.raises(DataRefused, match=re.escape("image x: got floating-point pixels, expected 8 or 16 bits per channel. Save it as PNG")):
        as_rgb(Image.fromarray(np.zeros((2, 2), np.float32)), "x")


def test_open_files_are_read_too():
    file = io.BytesIO()
    Image.fromarray(picture(4)).save(file, "png")
    assert np.array_equal(np.asarray(read_image(file, "x")), picture(4))


def test_fit_keeps_the_right_size_and_takes_the_centre_of_others():
    image = Image.fromarray(picture(5))
    assert fit_image(image, 8) is image
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[:, 16:32] = 200
    assert np.asarray(fit_image(Image.fromarray(wide), 8))[:, 1:-1].min() == 200
    assert fit_image(Image.fromarray(wide.transpose(1, 0, 2)), 8).size == (8, 8)
    assert fit_image(Image.fromarray(np.full((3, 5, 3), 7, np.uint8)), 8).getextrema() == ((7, 7),) * 3
