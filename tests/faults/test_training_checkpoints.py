"""Training checkpoints: killed, cut, flipped, full disks, failing disks, lost power, values that are none."""

import errno
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from trainings import made, save, whole_step

from layerzoo import checkpoint
from layerzoo.checkpoint import sweep
from layerzoo.errors import DataRefused
from layerzoo.report import calls
from layerzoo.train import saving
from layerzoo.train.saving import newest_whole, place, read, write

HERE = Path(__file__).parent
ENV = os.environ | {"PYTHONPATH": f"{HERE.parents[1]}:{HERE}", "OMP_NUM_THREADS": "1"}
FILES = ("model.safetensors", "state.safetensors", "state.json", "manifest.json")


@pytest.fixture
def folder(tmp_path):
    for step in (1, 2):
        save(tmp_path / "ckpt", step)
    return tmp_path / "ckpt"


def damaged(folder, name):
    """The newest is found out before use, by the name of its file, and the one before is taken and said."""
    path = re.escape(str(place(folder, 2) / name))
    with pytest.raises(DataRefused, match=f"^{path}: got "):
        read(place(folder, 2))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert newest_whole(folder) == place(folder, 1)
    assert len(told) == 1 and re.match(f"{path}: got .* It goes on from step-000000001 instead.$", str(told[0].message)), told


def flip(folder, count):
    draw = random.Random(count)
    for i in range(count):
        path = place(folder, 2) / FILES[i % len(FILES)]
        whole = path.read_bytes()
        at = draw.randrange(len(whole))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1:])
        damaged(folder, path.name)
        path.write_bytes(whole)
    assert whole_step(folder) == 2


def cut(folder, count):
    draw = random.Random(count)
    for name in FILES:
        path = place(folder, 2) / name
        whole = path.read_bytes()
        for length in (0, 1, 8, len(whole) - 1, *(draw.randrange(len(whole)) for _ in range(count - 4))):
            path.write_bytes(whole[:length])
            damaged(folder, name)
        path.write_bytes(whole + b"\n")
        damaged(folder, name)
        path.write_bytes(whole)
    assert whole_step(folder) == 2


def test_flipped_bits(folder):
    flip(folder, 100)


@pytest.mark.release
def test_many_flipped_bits(folder):
    flip(folder, 1000)


def test_truncated_files(folder):
    cut(folder, 20)


@pytest.mark.release
def test_files_truncated_at_many_lengths(folder):
    cut(folder, 200)


@pytest.mark.skipif(not calls.is_possible(), reason="this kernel lets no process be watched call by call")
def test_a_death_at_any_call_leaves_a_whole_one(tmp_path):
    done = subprocess.run([sys.executable, HERE / "trainings.py", tmp_path], check=False, capture_output=True, text=True, timeout=300, env=ENV)
    assert done.returncode == 0, done.stderr
    ends = json.loads(done.stdout)
    assert {name: sorted(found) for name, found in ends.items()} == {"first": ["-1", "1"], "next": ["2", "3"], "again": ["2"], "delete": ["3"]}
    assert sum(ends["next"].values()) > 10


LOOP = """
import itertools, sys
from pathlib import Path
import torch
from layerzoo.checkpoint import vanish
from layerzoo.train.saving import place, saved, write
from trainings import made
torch.set_num_threads(1)
folder = Path(sys.argv[1])
for step in itertools.count(int(sys.argv[2])):
    write(place(folder, step), made(step, 300_000), {})
    for old in saved(folder)[:-2]:
        vanish(old)
    print(step, flush=True)
"""


def kills(folder, count):
    """SIGKILL in a loop of saves of 2.4 MB, `count` times: never behind what was said to be saved."""
    draw, last = random.Random(0), 0
    for _ in range(count):
        with subprocess.Popen([sys.executable, "-c", LOOP, folder, str(last + 1)], stdout=subprocess.PIPE, text=True, env=ENV) as child:
            said = int(child.stdout.readline())
            time.sleep(draw.uniform(0, 0.3))
            child.kill()
            said = int(([str(said), *child.stdout.read().split()])[-1])
        step = whole_step(folder)
        assert step in (said, said + 1)
        kept = [path for path in saving.saved(folder) if saving.verify(path)]
        assert len(kept) >= min(2, step)
        sweep(folder)
        assert {path.name[:5] for path in folder.iterdir()} == {"step-"}, "litter"
        last = step


@pytest.mark.slow
def test_kills_in_a_loop_of_saves(tmp_path):
    kills(tmp_path, 6)


@pytest.mark.release
def test_many_kills_in_a_loop_of_saves(tmp_path):
    kills(tmp_path, 300)


class Custom:
    pass


@pytest.mark.parametrize("value, kind", [
    (PurePosixPath("x"), "pathlib.PurePosixPath"), (np.float32(1), "numpy.float32"), (np.float64(1), "numpy.float64"), (lambda: 0, "builtins.function"),
    (Custom(), f"{Custom.__module__}.Custom"), (slice(1), "builtins.slice"), (torch.zeros(2, 2).to_sparse(), "torch.Tensor with layout torch.sparse_coo")])
@pytest.mark.parametrize("change, where", [
    (lambda value: {"hyper_parameters": {"root": value}}, "hyper_parameters.root"),
    (lambda value: {"optimizer_states": [{"state": {0: {"extra": value}}}]}, "optimizer_states.0.state.0.extra"),
    (lambda value: {"callbacks": {"Mine": [1, (2, value)]}}, "callbacks.Mine.1.1")])
def test_what_is_no_plain_value_is_refused_at_the_save(folder, value, kind, change, where):
    before = sorted(folder.iterdir())
    with pytest.raises(ValueError, match=f"^{re.escape(f'training checkpoint: {where}: got {kind}, expected tensors, text')}"):
        write(place(folder, 3), made(3) | change(value), {})
    assert sorted(folder.iterdir()) == before and whole_step(folder) == 2


@contextmanager
def largest_file(size):
    """Every write beyond `size` bytes of a file fails in the kernel, those of safetensors too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 1, 100, 700, 1300, 1350])
def test_a_write_that_the_system_refuses(folder, size):
    with largest_file(size), pytest.raises(OSError, match=r"File too large: 1 MB needed, [\d,]+ MB are free: '.*step-000000003'") as caught:
        write(place(folder, 3), made(3), {})
    assert caught.value.errno == errno.EFBIG
    assert [path.name for path in sorted(folder.iterdir())] == ["step-000000001", "step-000000002"] and whole_step(folder) == 2
    save(folder, 3)
    assert whole_step(folder) == 3


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], check=False, capture_output=True).returncode:
        pytest.skip("no right to mount a small disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("warned", [True, False])
def test_a_disk_that_is_full(small_disk, monkeypatch, warned):
    """Found out before the first byte, or, where the file system said that there was room, on the way."""
    folder = small_disk / "ckpt"
    save(folder, 1)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(2_200_000))
    message = r"a checkpoint takes 3 MB, 2 MB are free" if warned else r"No space left on device: 3 MB needed, [0-3] MB are free: '.*step-000000002'"
    if not warned:
        monkeypatch.setattr(saving, "check_room", lambda *args: None)
    with pytest.raises(OSError, match=message) as caught:
        write(place(folder, 2), made(2, 290_000), {})
    assert caught.value.errno == errno.ENOSPC and whole_step(folder) == 1 and [*folder.iterdir()] == [place(folder, 1)]
    filler.unlink()
    write(place(folder, 2), made(2, 290_000), {})
    assert whole_step(folder) == 2


CALLS = ("mkdir", "open", "fsync", "rename")


def test_an_error_of_the_disk_at_any_call(folder, monkeypatch):
    """EIO at the k-th call, for every k: an error that names the checkpoint, the old ones whole, no litter."""
    k, failed, os_mkdir = 0, True, os.mkdir
    while failed:
        k, failed = k + 1, False
        left = k

        def counted(function):
            def call(*args, **options):
                nonlocal left, failed
                left -= function is not os_mkdir or not os.path.isdir(args[0])  # of a folder that is there, which changes nothing
                if left == 0:
                    failed = True
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                return function(*args, **options)
            return call

        with monkeypatch.context() as patch:
            for name in CALLS:
                patch.setattr(checkpoint.os, name, counted(getattr(os, name)))
            try:
                save(folder, 3)
            except OSError as error:
                assert failed and error.errno == errno.EIO
                assert error.filename == str(place(folder, 3)), k
            else:
                assert not failed, f"call {k} failed in silence"
        assert whole_step(folder) in (2, 3)
        sweep(folder)
        assert {path.name[:5] for path in folder.iterdir()} == {"step-"}
        shutil.rmtree(place(folder, 3), ignore_errors=True)
    assert k > 8
