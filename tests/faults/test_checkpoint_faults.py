"""Killed saves, flipped bits, cut files, strangers' pickles."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from forge import OPTIONS

import layerzoo as lz
from layerzoo.checkpoint import FILES, MANIFEST, load_checkpoint, save_checkpoint, verify_checkpoint
from layerzoo.errors import DataRefused
from layerzoo.report import calls

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = lz.create_model("hybrid_nano", num_classes=10, img_size=32)
    return save_checkpoint(tmp_path_factory.mktemp("f") / "a", model, **OPTIONS)


@pytest.mark.skipif(not calls.is_possible(), reason="this kernel lets no process be watched call by call")
def test_a_death_at_any_call_leaves_the_old_or_the_new_one(tmp_path):
    root = str(HERE.parents[1])
    env = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, HERE / "kills.py", tmp_path], check=False, capture_output=True, text=True, timeout=300, env=env)
    assert run.returncode == 0, run.stderr
    ends = json.loads(run.stdout)
    assert ends["new"].keys() == {"none", "new"}
    assert ends["overwrite"].keys() == {"old", "old, hidden", "new"}
    assert ends["overwrite"]["old, hidden"] == 1, "only between the two renames"
    assert ends["publish"].keys() == {"1", "2"}
    assert ends["pull"].keys() == {"0", "1"}
    assert sum(ends["new"].values()) > 20


@pytest.mark.parametrize("overwrite", [False, True])
def test_all_is_on_the_disk_before_it_has_its_name(folder, tmp_path, monkeypatch, overwrite):
    """Whatever a power cut loses, it loses after the last sync: sizes and order of the syncs, and what the rename finds synced."""
    target, events, sync, rename = tmp_path / "a", [], os.fsync, os.rename
    if overwrite:
        shutil.copytree(folder, target)

    def synced(handle):
        sync(handle)
        events.append((os.fstat(handle).st_ino, os.fstat(handle).st_size))

    def renamed(source, to):
        if ".new-" in str(source):
            files = {path.name: (path.stat().st_ino, path.stat().st_size) for path in Path(source).iterdir()}
            assert [event for event in events if event in files.values()] == [files[name] for name in (*FILES, MANIFEST)]
            assert events[-1][0] == Path(source).stat().st_ino, "the folder's own entries"
            events.clear()
        rename(source, to)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    save_checkpoint(target, load_checkpoint(folder), **OPTIONS, overwrite=overwrite)
    assert [inode for inode, _ in events] == [tmp_path.stat().st_ino], "the name itself"


def flip(folder, count, seed):
    """Flip one random bit of one of the files, verify, put it back; count what passes."""
    draw, sizes = random.Random(seed), {name: (folder / name).stat().st_size for name in (*FILES, MANIFEST)}
    for i in range(count):
        name = [*sizes][i % len(sizes)]
        whole, at = (folder / name).read_bytes(), draw.randrange(sizes[name])
        (folder / name).write_bytes(whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :])
        with pytest.raises(DataRefused, match=name):
            verify_checkpoint(folder)
        (folder / name).write_bytes(whole)
    assert verify_checkpoint(folder)


def test_any_flipped_bit_is_refused(folder):
    flip(folder, 60, seed=0)


@pytest.mark.slow
def test_any_of_many_flipped_bits_is_refused(folder):
    flip(folder, 2000, seed=1)


@pytest.mark.slow
def test_every_bit_of_the_manifest_is_vouched_for(folder):
    whole = (folder / MANIFEST).read_bytes()
    for bit in range(8 * len(whole)):
        (folder / MANIFEST).write_bytes(whole[: bit // 8] + bytes([whole[bit // 8] ^ 1 << bit % 8]) + whole[bit // 8 + 1 :])
        with pytest.raises(DataRefused):
            verify_checkpoint(folder)
    (folder / MANIFEST).write_bytes(whole)


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_any_length_but_the_right_one_is_refused(folder, name):
    whole = (folder / name).read_bytes()
    draw = random.Random(0)
    for length in (0, 1, 7, 8, 9, len(whole) - 1, *(draw.randrange(len(whole)) for _ in range(20))):
        (folder / name).write_bytes(whole[:length])
        with pytest.raises(DataRefused, match=name):
            verify_checkpoint(folder)
    (folder / name).write_bytes(whole + b"\n")
    with pytest.raises(DataRefused, match=name):
        verify_checkpoint(folder)
    (folder / name).write_bytes(whole)


def test_other_files_are_never_opened(folder):
    """A pickle that would leave a mark lies in the folder under every tempting name; an audit hook watches what is opened."""
    lures = ("pytorch_model.bin", "model.pt", "last.ckpt", "config.py", "model.pkl")
    mark = folder / "mark"
    for name in lures:
        (folder / name).write_bytes(b"cos\nsystem\n(S'touch " + str(mark).encode() + b"'\ntR.")
    opened = []
    watching = [True]
    watched = ("open", "pickle.find_class")
    sys.addaudithook(lambda event, args: opened.append((event, str(args[0]))) if watching and event in watched else None)
    load_checkpoint(folder)
    watching.clear()
    assert {Path(path).name for event, path in opened if str(folder) in path} == {*FILES, MANIFEST}
    assert not [event for event, _ in opened if event == "pickle.find_class"]
    assert not mark.exists()
    for name in lures:
        (folder / name).unlink()
