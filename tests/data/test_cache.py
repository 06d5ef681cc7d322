"""The cache serves what the files hold now, whole or not at all, and a run works without it."""

import os
import re
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from folders import make_folder, picture
from PIL import Image

from layerzoo.data import cache
from layerzoo.data.cache import decode, load_pixels
from layerzoo.data.sources import open_source
from layerzoo.errors import DataRefused
from layerzoo.paths import cache_folder


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERZOO_CACHE", str(tmp_path / "cache"))
    cache._warn_once.cache_clear()
    return tmp_path / "cache" / "pixels"


@pytest.fixture
def images(tmp_path):
    make_folder(tmp_path / "set", {"train": {"cat": 3, "dog": 2}, "test": {"cat": 1, "dog": 1}})
    return lambda split="train": open_source(f"folder:{tmp_path / 'set'}").splits[split]


@pytest.fixture
def decoded(monkeypatch):
    """Titles of the sets that were decoded."""
    titles = []
    monkeypatch.setattr(cache, "decode", lambda images, *rest: (titles.append(images.title), decode(images, *rest))[1])
    return titles


def on_disk(images):
    return torch.stack([torch.from_numpy(np.array(Image.open(images.name(i)))) for i in range(len(images))])


def test_second_time_nothing_is_decoded(images, decoded):
    first = load_pixels(images(), 8, True)
    assert torch.equal(first, on_disk(images())) and torch.equal(load_pixels(images(), 8, True), first)
    assert decoded == ["set-train"]


def test_each_size_has_its_own(images, decoded, own_folder):
    assert load_pixels(images(), 8, True).shape[1] == 8 and load_pixels(images(), 4, True).shape[1] == 4
    assert load_pixels(images(), 8, True).shape[1] == 8
    assert len(decoded) == 2 and len(list(own_folder.iterdir())) == 2


def test_off(images, decoded, own_folder):
    load_pixels(images(), 8, False)
    load_pixels(images(), 8, False)
    assert len(decoded) == 2 and not own_folder.exists()


def test_embedded_digits_are_not_kept(own_folder):
    assert load_pixels(open_source("digits").splits["test"], 32, True).shape == (355, 32, 32, 3)
    assert not own_folder.exists()


def change_content(path):
    """Same size, same modification time, other pixels."""
    before, values = path.stat(), np.asarray(Image.open(path)).copy()
    values[0, 0] ^= 1
    Image.fromarray(values).save(path)
    content = path.read_bytes()
    path.write_bytes(content + b"\0" * max(0, before.st_size - len(content)))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", [
    change_content, lambda p: Image.fromarray(picture(99)).save(p), lambda p: p.unlink(), lambda p: p.rename(p.with_name("zzz.png")),
    lambda p: Image.fromarray(picture(98)).save(p.with_name("new.png")),
    lambda p: (Image.fromarray(picture(97)).save(p.with_suffix(".tmp"), "png"), os.utime(p.with_suffix(".tmp"), ns=(0, p.stat().st_mtime_ns)),
               os.replace(p.with_suffix(".tmp"), p)),
], ids=["same size and time", "rewritten", "deleted", "renamed", "added", "replaced"])
def test_a_changed_set_is_decoded_anew(change, images, decoded, own_folder):
    load_pixels(images(), 8, True)
    load_pixels(images("test"), 8, True)
    time.sleep(0.02)  # a file system's clock ticks every few milliseconds
    change(Path(images().name(1)))
    assert torch.equal(load_pixels(images(), 8, True), on_disk(images()))
    load_pixels(images("test"), 8, True)
    assert decoded == ["set-train", "set-test", "set-train"]
    assert len(list(own_folder.iterdir())) == 2  # the old file is gone


def test_a_set_that_changes_while_it_is_read(images, monkeypatch):
    def slow(images, *rest):
        pixels = decode(images, *rest)
        time.sleep(0.02)
        Image.fromarray(picture(9)).save(images.name(0))
        return pixels

    monkeypatch.setattr(cache, "decode", slow)
    with pytest.raises(DataRefused, match=re.escape("set-train: got images that changed while they were read, expected files at rest. Start again.")):
        load_pixels(images(), 8, True)


def spoil(path, how):
    content = bytearray(path.read_bytes())
    if how == "cut":
        content = content[:-50]
    elif how == "empty":
        content = b""
    else:
        content[how] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["cut", "empty", 3, 20, 60, 120, -1, -400])
def test_spoilt_files_are_never_used(how, images, decoded, own_folder):
    first = load_pixels(images(), 8, True)
    spoil(next(own_folder.iterdir()), how)
    with pytest.warns(UserWarning, match=r"cache file .*set-train-8px-.* (is damaged|cannot be read \(.*\)): its images are decoded anew"):
        assert torch.equal(load_pixels(images(), 8, True), first)
    assert torch.equal(load_pixels(images(), 8, True), first)
    assert len(decoded) == 2


def test_folder_that_cannot_be_written(images, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LAYERZOO_CACHE", str(tmp_path / "file"))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for split in ("train", "test"):
            assert torch.equal(load_pixels(images(split), 8, True), on_disk(images(split)))
    assert len(said) == 1
    assert re.match(r"cache folder .*file/pixels cannot be written \(.*\): images are decoded at each start. Set LAYERZOO_CACHE to another", str(said[0].message))


def test_full_disk_leaves_nothing(images, monkeypatch, own_folder):
    def full(tensors, path, about):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "save_file", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        load_pixels(images(), 8, True)
    assert list(own_folder.iterdir()) == []


def test_leftovers_of_killed_runs_are_swept(images, own_folder):
    own_folder.mkdir(parents=True)
    old, young = own_folder / ".a.safetensors.1.tmp", own_folder / ".b.safetensors.2.tmp"
    old.write_bytes(b"x")
    young.write_bytes(b"x")
    os.utime(old, (0, 0))
    load_pixels(images(), 8, True)
    assert not old.exists() and young.exists()


def test_broken_images_are_all_named(images, tmp_path):
    for i in (0, 3):
        Path(images().name(i)).write_bytes(b"")
    with pytest.raises(DataRefused, match=re.escape("set-train: got 2 of 5 images that cannot be read, expected none. The first:\nimage ")) as refusal:
        load_pixels(images(), 8, True)
    assert all(images().name(i) in str(refusal.value) for i in (0, 3)) and len(str(refusal.value).splitlines()) == 3


def test_several_processes_give_the_same(images, monkeypatch, capsys):
    alone = decode(images(), 8)
    monkeypatch.setattr(cache, "_ALONE", 1)
    monkeypatch.setattr(cache, "_CHUNK_BYTES", 400)
    monkeypatch.setattr(cache, "cores", lambda: 2)
    assert torch.equal(decode(images(), 8), alone)
    assert re.search(r"decoded set-train: 5 images in \d+\.\d s", capsys.readouterr().err)
    Path(images().name(4)).write_bytes(b"")
    with pytest.raises(DataRefused, match=re.escape("got 1 of 5 images that cannot be read, expected none. The first:\nimage " + images().name(4))):
        decode(images(), 8)


def test_progress_on_a_terminal(images, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    ticks = iter(range(100))
    monkeypatch.setattr(cache.time, "monotonic", lambda: next(ticks))
    monkeypatch.setattr(cache, "_CHUNK_BYTES", 400)
    decode(images(), 8)
    assert "\rdecoding set-train: 4 of 5" in capsys.readouterr().err


def test_where_the_cache_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LAYERZOO_CACHE", "~/here")
    assert cache_folder() == tmp_path / "here"
    monkeypatch.delenv("LAYERZOO_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "layerzoo"
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/layerzoo")
