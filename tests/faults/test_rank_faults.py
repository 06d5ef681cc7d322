"""Signals to any rank, and ranks that die, raise, stick or diverge: all end, in time, with one reason, and the run goes on to the same bits."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from outcome import ALONE

import layerzoo as lz
from layerzoo.train.saving import newest_whole

SCRIPT = Path(__file__).with_name("ranks.py")
LIMIT = 120  # seconds after a fault in which all have to be over; a rank waits 30 for another
START = 300  # for imports and the first steps, which take ten, and minutes on a machine that has other work


def start(fault, rank, step, folder, devices):
    """(exit code, what was printed, seconds since the fault); nothing of its process group is left."""
    words = [sys.executable, SCRIPT, fault, str(rank), str(step), str(folder), str(devices)]
    process = subprocess.Popen(
        words, env=ALONE | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    out, _ = process.communicate(timeout=START + LIMIT)  # which waits for every process that could still print
    asked = re.search(r"asked at ([\d.]+)", out)
    return process.returncode, out, time.time() - float(asked[1]) if asked else 0.0


def run_folder(folder):
    [found] = (folder / "toy").iterdir()
    return found


def weights(folder):
    return lz.load(run_folder(folder) / "checkpoint").state_dict()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Final weights by number of devices."""
    known = {}

    def get(devices):
        if devices not in known:
            folder = tmp_path_factory.mktemp("unbroken")
            code, out, _ = start("none", 0, 0, folder, devices)
            assert code == 0, out
            known[devices] = weights(folder)
        return known[devices]
    return get


SIGNALS = [(number, phase, rank, devices)
           for number in ("SIGTERM", "SIGINT", "SIGUSR1") for phase in ("step", "val", "save", "warm-up", "data") for rank, devices in ((0, 1), (0, 2), (1, 2))]
CHOSEN = {
    *(("SIGTERM", phase, 0, 1) for phase in ("step", "val", "save", "warm-up", "data")), ("SIGINT", "step", 0, 1), ("SIGUSR1", "val", 0, 1),
    ("SIGTERM", "step", 1, 2), ("SIGINT", "val", 0, 2), ("SIGUSR1", "save", 1, 2)}


@pytest.mark.parametrize("number, phase, rank, devices", [pytest.param(*s, marks=pytest.mark.slow if s in CHOSEN else pytest.mark.release) for s in SIGNALS])
def test_a_signal_stops_all_and_the_run_goes_on(tmp_path, unbroken, number, phase, rank, devices):
    code, out, seconds = start(f"{number}:{phase}", rank, 8 if phase in ("val", "save") else 11, tmp_path, devices)
    expected = 130 if number == "SIGINT" else 143
    assert seconds < 10, out
    assert "Traceback" not in out or (phase, devices) == ("warm-up", 2), out  # there the others were waiting for it
    if phase != "warm-up":
        assert code == expected, out
        status = json.loads((run_folder(tmp_path) / "status.json").read_text())
        assert status["state"] == "stopped" and status["checkpoint"] == newest_whole(run_folder(tmp_path) / "ckpt").name
    else:
        assert code in (expected, 1) if devices == 2 else code == expected, out
    code, out, _ = start("none", 0, 0, tmp_path, devices)
    assert code == 0 and (phase == "warm-up" or "resumed from step-" in out), out
    assert all(torch.equal(value, unbroken(devices)[name]) for name, value in weights(tmp_path).items())


REASONS = {
    "killed": "now", "raises": "no such luck", "stuck": "now",
    "nan": r"training loss at step 12 is nan \(samples of rank \d: \d+ of digits train, .*Resumed with --trainer.log_every_n_steps 1"}
FAULTS = [(fault, rank) for fault in REASONS for rank in (0, 1)]
QUICK = {("killed", 0), ("killed", 1), ("raises", 1), ("stuck", 0), ("nan", 1)}


@pytest.mark.parametrize("fault, rank", [pytest.param(*f, marks=pytest.mark.slow if f in QUICK else pytest.mark.release) for f in FAULTS])
def test_a_rank_that_fails_ends_all(tmp_path, unbroken, fault, rank):
    reason = REASONS[fault]
    code, out, seconds = start(fault, rank, 11, tmp_path, 2)
    assert 0 < seconds < LIMIT, out
    assert code in ((137, -9, 1) if fault in ("killed", "stuck") else (1,)), out
    assert re.search(reason, out) and out.count("Traceback") <= (fault == "raises"), out
    if fault in ("raises", "stuck"):
        assert re.search(rf"^rank {1 - rank}: another rank ended, or did not answer in time \(.+\)\. Its own message says why", out, re.MULTILINE), out
    assert newest_whole(run_folder(tmp_path) / "ckpt").name == "step-000000008"
    if fault == "raises" and rank:
        code, out, _ = start("none", 0, 0, tmp_path, 2)
        assert code == 0 and all(torch.equal(value, unbroken(2)[name]) for name, value in weights(tmp_path).items()), out
