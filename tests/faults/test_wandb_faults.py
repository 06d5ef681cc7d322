"""W&B that is not there, refuses, is slow, breaks, or is lost on the way: the run has the bits and the rows of one without it."""

import dataclasses
import os
import re
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import wandb
from outcome import equal
from runs import At, folder, left, runner
from wandb_server import serve

from layerzoo.config import LoggingConfig
from layerzoo.train.loggers import _identity, read_metrics

sys.path.append(str(Path(__file__).parents[1] / "train"))
import wandb_reader  # noqa: E402

KEY = "5ecre7" * 6 + "abcd"  # 40 characters, as a key has


@pytest.fixture
def fit(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    wandb.teardown()

    def call(mode, *callbacks):
        logging = LoggingConfig(wandb=mode)
        return runner(tmp_path, monkeypatch, capsys)(*callbacks, change=lambda recipe: dataclasses.replace(recipe, logging=logging))
    yield call
    try:
        wandb.teardown()
    except OSError:  # of a service that is dead
        wandb.setup()


@pytest.fixture
def server(monkeypatch):
    made = serve("answers")
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{made.server_port}")
    yield made
    made.over.set()
    made.shutdown()
    made.server_close()


def kill_service():
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    for child in children:
        if Path(f"/proc/{child}/comm").read_text() == "wandb-core\n":
            os.kill(int(child), signal.SIGKILL)


def behave(server, behaviour):
    server.behaviour = behaviour
    if behaviour == "closed":
        server.shutdown()
        server.server_close()


CASES = {  # behaviour from the start, what happens at step 11, what is said, seconds of it all
    "answers": ("answers", lambda server: None, "", 40),
    "closed port": ("closed", lambda server: None, r"W&B: offline \(http://127.0.0.1:\d+ does not answer\); to upload: wandb sync", 30),
    "silent": ("silent", lambda server: None, r"W&B: offline \(http://127.0.0.1:\d+ does not answer\)", 30),
    "bad key": ("refuses", lambda server: None, r"W&B: offline \(no run could be started: ", 40),
    "slow": ("slow", lambda server: None, "", 40),
    "lost": ("answers", lambda server: behave(server, "closed"), "", 100),
    "revoked key": ("answers", lambda server: behave(server, "refuses"), "", 100),
    "silent on the way": ("answers", lambda server: behave(server, "silent"), "", 100),
    "service killed": ("answers", lambda server: kill_service(), r"W&B: stopped \(", 40)}
PATIENT = ("lost", "silent on the way", "revoked key")


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.release if c in PATIENT else pytest.mark.slow) for c in CASES])
def test_a_run_is_what_it_is_without(fit, server, tmp_path, capsys, case):
    assert fit("disabled")[0] == 0
    without = left(tmp_path)
    shutil.rmtree(tmp_path / "toy")
    first, later, said, limit = CASES[case]
    behave(server, first)
    said_out, began = [], time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *words, **options: said_out.append(" ".join(map(str, words))))
        code, _ = fit("online", At(lambda: later(server)))
    assert code == 0 and time.monotonic() - began < limit, time.monotonic() - began
    equal(left(tmp_path), without)
    told = [line for line in said_out if line.startswith("W&B: ")]
    assert (len(told) == 1 and re.match(said, told[0])) if said else told == [], told
    if case != "service killed":  # all is there to be sent later
        [file] = [*folder(tmp_path).glob("wandb/offline-run-*/*.wandb")] or folder(tmp_path).glob("wandb/run-*/*.wandb")
        history = wandb_reader.read(file)["history"]
        for row in read_metrics(folder(tmp_path) / "metrics.jsonl"):
            assert [h for h in history if h.get("trainer/global_step") == row["step"] and row.keys() - {"step", "epoch", "time"} <= h.keys()], row


def test_one_that_breaks_at_its_start(fit, tmp_path, monkeypatch, capsys):
    def broken(*args, **options):
        raise ZeroDivisionError("a bug of W&B")

    said = []
    monkeypatch.setattr(wandb, "init", broken)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *words, **options: said.append(" ".join(map(str, words))))
        assert fit("offline")[0] == 0
    assert "W&B: not started (ZeroDivisionError: a bug of W&B); the run goes on, and metrics.jsonl is complete" in said
    assert [row["step"] for row in read_metrics(folder(tmp_path) / "metrics.jsonl")][-1] == 24


def test_an_identity_that_was_lost_and_one_that_cannot_be_written(tmp_path):
    (tmp_path / "wandb_id").write_text("")
    made = _identity(tmp_path)
    assert re.fullmatch("[0-9a-f]{8}", made) and _identity(tmp_path) == made
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    (tmp_path / "wandb_id").unlink()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
        with pytest.raises(OSError, match=r"File too large: [\d,]+ MB are free: '.*wandb_id'"):
            _identity(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
