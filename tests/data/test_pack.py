"""Packing: byte for byte, whole or not at all, and checked afterwards."""

import errno
import filecmp
import os
import re
import shutil
import tarfile
from pathlib import Path

import pytest
from folders import make_folder

from layerzoo import cli, pack
from layerzoo.data.sources import open_source
from layerzoo.errors import DataRefused


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "images", {"train": {"cat": 9, "dog": 8}, "val": {"cat": 2, "dog": 3}}, size=(250, 240))  # 180 kB each


def run(capsys, *words):
    try:
        code = cli.main(["data", *map(str, words)])
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr()
    return code or 0, said.out, said.err


def test_pack_and_check(folder, tmp_path, capsys):
    out = tmp_path / "shards"
    code, said, _ = run(capsys, "pack", f"folder:{folder}", "--out", out, "--shard-mb", 1)
    assert code == 0 and said == f"train  17 images in 4 shards\nval    5 images in 1 shards\nnext  --data.source wds:{out}\n"
    assert all(path.stat().st_size <= 10**6 for path in out.glob("*/*.tar"))
    with tarfile.open(out / "train" / "train-000001.tar") as tar:
        members = tar.getmembers()
        assert [m.name for m in members[:2]] == ["00000005.cls", "00000005.png"] and {(m.mtime, m.uid, m.uname) for m in members} == {(0, 0, "")}
        assert tar.extractfile(members[1]).read() == (folder / "train" / "cat" / "005.png").read_bytes()
    here, there = (open_source(text).splits["train"] for text in (f"wds:{out}", f"folder:{folder}"))
    assert all(here.read(i).tobytes() == there.read(i).tobytes() for i in range(17))
    assert run(capsys, "check", out) == (0, "5 shards are whole\n", "")
    path = out / "train" / "train-000002.tar"
    data = path.read_bytes()
    path.write_bytes(data[:700] + bytes([data[700] ^ 1]) + data[701:])
    (out / "val" / "val-000000.tar").unlink()
    code, _, said = run(capsys, "check", out)
    assert code == 65 and said == (
        f"{path}, {out}/val/val-000000.tar: got 2 of 5 shards missing or changed, expected the bytes that their index states. Fetch or write them again.\n")
    code, _, said = run(capsys, "check", folder)
    assert code == 65 and said == f"{folder}: got no */index.safetensors, expected a folder that `layerzoo data pack` wrote. Correct the path.\n"


def test_packed_twice_it_is_the_same_bytes(folder, tmp_path):
    for name in ("one", "two"):
        pack.pack(f"folder:{folder}", tmp_path / name, 1)
        for path in folder.glob("*/*/*"):
            os.utime(path, (5, 5))
    left = filecmp.dircmp(tmp_path / "one", tmp_path / "two")
    pairs = [(a, tmp_path / "two" / a.relative_to(tmp_path / "one")) for a in (tmp_path / "one").glob("*/*")]
    assert not left.left_only and not left.right_only and len(pairs) == 7 and all(a.read_bytes() == b.read_bytes() for a, b in pairs)


def test_an_image_larger_than_a_shard_has_its_own(tmp_path):
    folder = make_folder(tmp_path / "images", {"train": {"cat": 2}, "val": {"cat": 1}}, size=(700, 700))
    assert pack.pack(f"folder:{folder}", tmp_path / "out", 1) == {"train": (2, 2), "val": (1, 1)}


@pytest.mark.parametrize("words, message", [
    (["pack", "digits", "--out", "new"], "source: got 'digits', expected folder:PATH. Other sources have shards of their own or fit in memory."),
    (["pack", "folder:images"], "--out: got none, expected a new folder. layerzoo data pack folder:images --out DIR"),
    (["pack", "folder:images", "--out", "images"], "images: got a path that exists, expected a new folder. Delete it or choose another name."),
    (["pack", "folder:images", "--out", "new", "--shard-mb", "0"], "--shard-mb: got 0, expected a number of MB >= 1. The usual is 256.")])
def test_commands_that_are_wrong(folder, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert run(capsys, *words) == (2, "", f"{message}\n") and not Path("new").exists()


def test_no_room(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("usage", (), {"free": 10**6}))
    code, _, said = run(capsys, "pack", f"folder:{folder}", "--out", tmp_path / "deep" / "out")
    assert code == 74 and said.startswith(f"storage: got [Errno 28] the shards take 4 MB, 1 MB are free: '{tmp_path}', expected a place to write."), said
    assert not (tmp_path / "deep").exists()


def test_what_fails_on_the_way_leaves_nothing(folder, tmp_path, monkeypatch):
    def fail(path, size, count=[0]):
        count[0] += 1
        if count[0] > 12:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return path.read_bytes()

    monkeypatch.setattr(pack, "_whole", fail)
    with pytest.raises(OSError, match=f"Input/output error: '{tmp_path}/out'"):
        pack.pack(f"folder:{folder}", tmp_path / "out", 1)
    assert [*tmp_path.iterdir()] == [folder]


def test_an_image_that_changes_meanwhile(folder, tmp_path):
    path = folder / "train" / "cat" / "003.png"
    size = path.stat().st_size
    with pytest.raises(DataRefused, match=re.escape(f"{path}: got {size:,} bytes, expected {size + 1:,} bytes, as at the start. Pack a folder that nothing")):
        pack._whole(path, size + 1)
