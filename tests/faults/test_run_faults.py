"""Whole runs: killed anywhere, told twice to stop, alone in their folder, on disks that are full, vanish or may not be written."""

import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import pytorch_lightning as pl
import ranks
from outcome import equal
from runs import At, folder, left, runner

from layerzoo.train.saving import newest_whole

WORDS = [sys.executable, Path(ranks.__file__), "none", "0", "0"]
ENV = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture
def fit(tmp_path, monkeypatch, capsys):
    return runner(tmp_path, monkeypatch, capsys)


def test_a_run_folder_that_vanishes(fit, tmp_path):
    code, said = fit(At(lambda: shutil.rmtree(folder(tmp_path))))
    assert code == 74 and re.match(r"storage: got \[Errno \d+\] the run folder is gone: '.*/toy/.*', expected a place to write", said), said
    assert [*(tmp_path / "toy").iterdir()] == [], "not made anew with a part of a run in it"


def test_a_log_on_a_full_disk(fit, tmp_path):
    def fill():
        (folder(tmp_path) / "metrics.jsonl").unlink()
        (folder(tmp_path) / "metrics.jsonl").symlink_to("/dev/full")

    code, said = fit(At(fill, step=10))
    assert code == 74 and re.match(r"storage: got \[Errno 28\] No space left on device: [\d,]+ MB are free: '.*metrics.jsonl'", said), said
    status = json.loads((folder(tmp_path) / "status.json").read_text())
    assert status["state"] == "failed" and status["checkpoint"] == "step-000000008" == newest_whole(folder(tmp_path) / "ckpt").name


def test_no_room_for_a_checkpoint_and_then_room(fit, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        code, said = fit(At(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 74 and re.match(
        r"storage: got \[Errno 27\] File too large: \d+ MB needed, [\d,]+ MB are free: '.*ckpt/step-0000000(16|24)', expected a place to write. Free space", said), said
    assert {path.name for path in (folder(tmp_path) / "ckpt").iterdir()} == {newest_whole(folder(tmp_path) / "ckpt").name} == {"step-000000008"}
    assert fit()[0] == 0 and (folder(tmp_path) / "checkpoint").is_dir()


def test_a_value_that_is_none_ends_the_run_at_its_save(fit, tmp_path):
    class Mine(pl.Callback):
        def state_dict(self):
            return {"where": Path("x")}

    code, said = fit(Mine())
    assert code == 2 and re.match(r"training checkpoint: callbacks\.\S*Mine\.where: got pathlib\.PosixPath, expected tensors", said), said
    assert not [*(folder(tmp_path) / "ckpt").glob("*")]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts")
def test_a_folder_that_may_not_be_written(fit, tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", tmp_path], check=False, capture_output=True).returncode:
        pytest.skip("no right to mount")
    try:
        code, said = fit(At(lambda: pytest.fail("it came to a step"), step=1))
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert code == 74 and re.match(r"storage: got \[Errno 30\] Read-only file system: '.*toy'", said), said


def test_told_twice_to_stop(fit, tmp_path):
    """The second signal comes while the first is being obeyed, in a save of a tenth of a second."""
    def twice():
        if not asked:
            return
        again = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM))
        again.start()
        time.sleep(0.1)
        again.join()
        done.append(True)

    def ask():
        asked.append(True)
        os.kill(os.getpid(), signal.SIGTERM)

    asked, done = [], []
    code, _ = fit(At(ask), At(twice, save=True))
    status = json.loads((folder(tmp_path) / "status.json").read_text())
    assert code == 143 and done and status["state"] == "stopped" and status["checkpoint"] == "step-000000011"
    assert newest_whole(folder(tmp_path) / "ckpt").name == "step-000000011"


@pytest.mark.slow
def test_two_runs_in_one_folder(tmp_path):
    """The second is refused by the host and process of the first; after its death the folder is free."""
    words = [*WORDS[:2], "stuck", "0", "11", str(tmp_path), "1"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=ENV) as first:
        while "rank 0 now" not in first.stdout.readline():
            assert first.poll() is None
        second = subprocess.run([*WORDS, str(tmp_path), "1"], check=False, capture_output=True, text=True, timeout=60, env=ENV)
        first.kill()
    who = f"a run in it (host {socket.gethostname()}, process {first.pid}), expected none. Wait for it, or begin another with --fresh."
    assert second.returncode == 2 and who in second.stderr, second.stderr
    third = subprocess.run([*WORDS, str(tmp_path), "1"], check=False, capture_output=True, text=True, timeout=60, env=ENV)
    assert third.returncode == 0 and "resumed from step-000000008" in third.stdout, third.stderr


def killed(tmp_path, kills, seed):
    """The same command until it is done, killed that often at random moments of the run itself; bits and rows at the end."""
    draw, words = random.Random(seed), [*WORDS, str(tmp_path), "1"]
    for _ in range(kills):
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=ENV, start_new_session=True) as child:
            for line in child.stdout:
                if line.startswith("batch"):
                    time.sleep(draw.uniform(0, 0.6))
                    os.killpg(child.pid, signal.SIGKILL)
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=100, env=ENV)
    assert done.returncode == 0, done.stderr
    hidden = [path for place in (folder(tmp_path), folder(tmp_path) / "ckpt") for path in place.glob(".*") if path.name != ".lock"]
    assert hidden == [], "litter"
    return left(tmp_path)


@pytest.mark.slow
def test_killed_three_times(tmp_path):
    equal(killed(tmp_path / "whole", 0, 0), killed(tmp_path / "parts", 3, 0))


@pytest.mark.release
@pytest.mark.parametrize("seed", range(20))
def test_killed_in_twenty_runs(tmp_path, seed):
    equal(killed(tmp_path / "whole", 0, seed), killed(tmp_path / "parts", 3, seed))
