"""Images that are programs or bombs, whatever their names: refused from their first bytes or stated size, and nothing is started."""

import os
import struct
import subprocess
import sys
import zlib

import pytest
from forge import refuses
from PIL import Image

from layerzoo.data.images import MAX_PIXELS, read_image
from layerzoo.errors import DataRefused

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(mark) (w) file closefile\nshowpage\n%%EOF\n"


def png(width, height, data=b""):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + data + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def test_a_program_is_no_image(tmp_path, monkeypatch):
    """Pillow would hand it to Ghostscript."""
    gs = tmp_path / "gs"
    gs.write_text(f"#!/bin/sh\ntouch {tmp_path}/mark\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name in ("x.eps", "x.png", "x.jpg"):
        (tmp_path / name).write_bytes(EPS)
        with refuses("image x: got UnidentifiedImageError: cannot identify image file", DataRefused):
            read_image(tmp_path / name, "x")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("size", [(2**31 - 1, 2**31 - 1), (2**20, 2**10), (MAX_PIXELS + 1, 1), (0, 0)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_size_is_refused_before_it_is_decoded(tmp_path, size):
    (tmp_path / "x.png").write_bytes(png(*size))
    with refuses("image x: got ", DataRefused):
        read_image(tmp_path / "x.png", "x")


def test_what_photographs_are_stored_in_is_read(tmp_path):
    for suffix in ("jpg", "png", "webp", "gif", "bmp", "tif", "ppm"):
        Image.new("RGB", (5, 4), (9, 9, 9)).save(path := tmp_path / f"x.{suffix}")
        assert read_image(path, "x").size == (5, 4)


@pytest.mark.slow
def test_bombs_cost_little_memory(tmp_path):
    """The largest that passes costs its own pixels; what lies beyond, nothing."""
    code = "import resource, sys\nfrom layerzoo.data.images import read_image\nbefore = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
    code += "try:\n    read_image(sys.argv[1], 'x')\nexcept ValueError as error:\n    print(error.exit_code)\n"
    code += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    text = struct.pack(">I", 4000) + b"zTXt" + b"k\0\0" + zlib.compress(bytes(100_000_000), 9)[:3997]
    for data in (png(2**13, 2**14), png(30_000, 30_000), png(8, 8, text + struct.pack(">I", zlib.crc32(text[4:])))):
        (tmp_path / "x.png").write_bytes(data)
        done = subprocess.run([sys.executable, "-c", code, tmp_path / "x.png"], check=True, capture_output=True, text=True)
        code_said, more = map(int, done.stdout.split())
        assert code_said == 65 and more * 1024 < 100e6, done.stdout
