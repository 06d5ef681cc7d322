"""metrics.jsonl and W&B: nothing lost, nothing written twice, never a wait for a server that does not answer."""

import json
import math
import os
import signal
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import pytorch_lightning as pl
import wandb
import wandb_reader
from outcome import rows
from toy import QUIET, ToyData, toy_task

from layerzoo.config import LoggingConfig
from layerzoo.train import loggers
from layerzoo.train.callbacks import PredictionReport, StepMeter
from layerzoo.train.loggers import MetricsFile, create_wandb, read_metrics

KEY = "5ecre7" * 6 + "abcd"  # 40 characters, as a key has


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    wandb.teardown()
    yield
    wandb.teardown()


def test_rows(tmp_path):
    file = MetricsFile(tmp_path)
    file.log_metrics({"train/loss": 0.5, "epoch": 2}, step=7)
    file.log_metrics({"train/loss": math.nan, "val/loss": math.inf}, step=8)
    first, second = read_metrics(tmp_path / "metrics.jsonl")
    assert abs(first.pop("time") - time.time()) < 60
    assert first == {"step": 7, "epoch": 2, "train/loss": 0.5}
    assert (second["train/loss"], second["val/loss"]) == ("nan", "inf")


def test_rows_are_never_deleted_nor_written_twice(tmp_path):
    for restart in range(3):
        file = MetricsFile(tmp_path)
        for step in range(restart, restart + 4):
            file.log_metrics({"train/loss": 0.1 * step}, step=step)
            file.log_metrics({"val/loss": 0.1 * step}, step=step)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(r["step"], "val/loss" in r) for r in rows] == [(step, val) for step in range(6) for val in (False, True)]


def test_a_line_torn_by_a_kill_costs_that_line_alone(tmp_path):
    path = tmp_path / "metrics.jsonl"
    MetricsFile(tmp_path).log_metrics({"a": 1.0}, step=1)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 2, "epo')
    MetricsFile(tmp_path).log_metrics({"a": 2.0}, step=2)
    assert [r["step"] for r in read_metrics(path)] == [1, 2]
    assert path.read_bytes().startswith(whole + b'{"step": 2, "epo\n')


def test_resumed_run_leaves_the_rows_of_an_unbroken_one(tmp_path):
    """Killed in the middle of the third epoch, resumed from the end of the second; dropout repeats too."""
    class Killed(pl.Callback):
        def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
            if trainer.global_step == 16:
                raise KeyError("killed")

    def run(folder, callbacks, ckpt=None):
        folder.mkdir(exist_ok=True)
        saver = pl.callbacks.ModelCheckpoint(folder, filename="last", enable_version_counter=False, save_on_train_epoch_end=True)
        options = {"max_epochs": 4, "devices": 1} | QUIET
        trainer = pl.Trainer(logger=MetricsFile(folder), callbacks=[StepMeter(every_n_steps=4), saver, *callbacks], **options)
        trainer.fit(toy_task("dropout", max_epochs=4, ema_decay=0.9), datamodule=ToyData(), ckpt_path=ckpt, weights_only=True)
        return trainer.lightning_module.state_dict()

    whole = run(tmp_path / "whole", [])
    with pytest.raises(KeyError, match="killed"):
        run(tmp_path / "parts", [Killed()])
    parts = run(tmp_path / "parts", [], tmp_path / "parts" / "last.ckpt")
    assert all((parts[k] == v).all() for k, v in whole.items())
    one, other = (rows(tmp_path / folder) for folder in ("whole", "parts"))
    assert one == other and len(one) == 4 * 3


def test_offline_run_holds_metrics_configuration_and_pictures(tmp_path, capsys):
    logger = create_wandb(LoggingConfig(), tmp_path, name="toy-s0", group="toy")
    assert "W&B: offline (no API key); to upload: wandb sync" in capsys.readouterr().out
    recipe = {"task": {"optimizer": {"lr": 0.05, "options": {}}, "tta": None}, "data": {"source": "toy"}}
    logger.log_hyperparams({"recipe": recipe, "cost": {"params": 12}})
    task = toy_task()
    report = PredictionReport(task.classes, [0.5] * 3, [0.2] * 3, tmp_path, count=4)
    options = {"max_epochs": 2, "devices": 1, "enable_checkpointing": False} | QUIET
    trainer = pl.Trainer(logger=[logger, MetricsFile(tmp_path)], callbacks=[StepMeter(every_n_steps=4), report], **options)
    trainer.fit(task, datamodule=ToyData())
    [metrics] = trainer.test(task, datamodule=ToyData(), verbose=False)
    logger.finish(0)

    [file] = tmp_path.glob("wandb/offline-run-*/*.wandb")
    run = wandb_reader.read(file)
    assert run["id"] == (tmp_path / "wandb_id").read_text() and (run["group"], run["name"]) == ("toy", "toy-s0")
    assert run["config"]["recipe"] == recipe and run["config"]["cost"] == {"params": 12}
    assert run["exit_code"] == 0
    for row in read_metrics(tmp_path / "metrics.jsonl"):
        names = row.keys() - {"step", "epoch", "time"}
        [same] = [h for h in run["history"] if h.get("trainer/global_step") == row["step"] and names <= h.keys()]
        assert all(same[name] == pytest.approx(row[name]) for name in names)
    tested = [h for h in run["history"] if "test/top1" in h]
    assert [h["test/top1"] for h in tested] == [pytest.approx(metrics["test/top1"])]
    pictures = {name: value for h in run["history"] for name, value in h.items() if name.endswith("/filenames")}
    assert pictures.keys() == {"test/confusion_matrix/filenames", "test/wrong_predictions/filenames"}
    assert all((file.parent / "files" / picture).is_file() for [picture] in pictures.values())
    steps = [h["_step"] for h in run["history"]]
    assert steps == sorted(set(steps))


def test_identity_survives_a_restart(tmp_path):
    ids = []
    for _ in range(2):
        logger = create_wandb(LoggingConfig(wandb="offline"), tmp_path, name="a", group="b")
        ids.append(logger.experiment.id)
        logger.finish(0)
    assert ids[0] == ids[1] == (tmp_path / "wandb_id").read_text()


def refusing():
    """The address of a closed port."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{s.getsockname()[1]}", lambda: None


def silent():
    """The address of a server that accepts and never answers."""
    server = socket.create_server(("127.0.0.1", 0))
    held = []

    def accept():
        while True:
            try:
                held.append(server.accept()[0])
            except OSError:
                return

    threading.Thread(target=accept, daemon=True).start()
    return f"http://127.0.0.1:{server.getsockname()[1]}", server.close


@pytest.mark.parametrize("mode, server", [("auto", refusing), ("online", silent)])
def test_unreachable_server(tmp_path, monkeypatch, capfd, mode, server):
    address, close = server()
    monkeypatch.setenv("WANDB_BASE_URL", address)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    start = time.monotonic()
    logger = create_wandb(LoggingConfig(wandb=mode), tmp_path, name="a", group="b")
    logger.log_metrics({"x": 1.0}, step=1)
    logger.finish(0)
    assert time.monotonic() - start < 15
    close()
    assert f"W&B: offline ({address} does not answer)" in capfd.readouterr().out
    [file] = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert wandb_reader.read(file)["history"][0]["x"] == 1
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("key", [KEY, "short"])
def test_server_that_refuses(tmp_path, monkeypatch, capfd, key):
    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(401)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("WANDB_API_KEY", key)
        logger = create_wandb(LoggingConfig(wandb="online"), tmp_path, name="a", group="b")
        logger.log_metrics({"x": 1.0}, step=1)
        logger.finish(0)
        server.shutdown()
    assert "W&B: offline (no run could be started: " in capfd.readouterr().out
    [file] = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert wandb_reader.read(file)["history"][0]["x"] == 1


def test_a_service_that_dies_does_not_stop_the_run(tmp_path, capsys):
    logger = create_wandb(LoggingConfig(wandb="offline"), tmp_path, name="a", group="b")
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    [service] = [int(c) for c in children if Path(f"/proc/{c}/comm").read_text() == "wandb-core\n"]
    os.kill(service, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while logger.working and time.monotonic() < deadline:
        logger.log_metrics({"x": 1.0}, step=1)
    logger.log_metrics({"x": 1.0}, step=2)
    logger.upload(tmp_path, "name", {})
    logger.finish(0)
    out = capsys.readouterr().out
    assert out.count("W&B: stopped (") == 1 and "the run goes on, and metrics.jsonl is complete" in out
    with pytest.raises(OSError):
        wandb.teardown()
    wandb.setup()


def test_a_server_that_drips_is_not_waited_for():
    server = socket.create_server(("127.0.0.1", 0))

    def drip():
        connection = server.accept()[0]
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        while not stop.wait(0.1):
            connection.sendall(b"X: y\r\n")

    stop = threading.Event()
    threading.Thread(target=drip, daemon=True).start()
    start = time.monotonic()
    assert not loggers._answers(f"http://127.0.0.1:{server.getsockname()[1]}", seconds=1)
    assert time.monotonic() - start < 3
    stop.set()
    server.close()


@pytest.mark.parametrize("config, variable", [("disabled", None), ("auto", "disabled")])
def test_disabled(tmp_path, monkeypatch, config, variable):
    if variable:
        monkeypatch.setenv("WANDB_MODE", variable)
    assert create_wandb(LoggingConfig(wandb=config), tmp_path, name="a", group="b") is None
    assert not list(tmp_path.iterdir())


def test_not_installed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
    assert create_wandb(LoggingConfig(), tmp_path, name="a", group="b") is None
    assert capsys.readouterr().out == "W&B: not installed, so metrics.jsonl alone\n"


def test_metrics_file_is_strict_json(tmp_path):
    MetricsFile(tmp_path).log_metrics({"a": -math.inf}, step=0)
    def refuse(constant):
        raise AssertionError(constant)
    json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
