"""What the meter logs, when it stops a run, and what the reports draw."""

import math
import re

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import Logger
from toy import QUIET, ToyData, toy_task

from layerzoo.ops.auxiliary import add_statistic
from layerzoo.train.callbacks import PredictionReport, Progress, StepMeter, draw_wrong


class Rows(Logger):
    """Keeps what is logged."""

    name, version = "rows", ""

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append({"step": step, **metrics})

    def log_hyperparams(self, params):
        pass


class Losses(pl.Callback):
    """The loss of every step, and a loss of `bad` at step `at`."""

    def __init__(self, at=None, bad=math.nan):
        self.losses, self.at, self.bad = [], at, bad

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        if trainer.global_step == self.at:
            outputs["loss"] = torch.tensor(self.bad)
        self.losses.append(outputs["loss"].item())


def fit(callbacks, *, task=None, **options):
    options = {"max_epochs": 2, "devices": 1, "logger": False, "enable_checkpointing": False} | QUIET | options
    trainer = pl.Trainer(callbacks=callbacks, **options)
    trainer.fit(task or toy_task(), datamodule=ToyData())
    return trainer


def test_meter_logs_means_between_readings():
    rows, losses = Rows(), Losses()
    fit([losses, StepMeter(every_n_steps=4)], logger=rows)
    train = [r for r in rows.rows if "train/loss" in r]
    assert [(r["step"], r["epoch"]) for r in train] == [(4, 0), (6, 0), (10, 1), (12, 1)]
    parts = [losses.losses[a:b] for a, b in ((0, 4), (4, 6), (6, 10), (10, 12))]
    assert [r["train/loss"] for r in train] == pytest.approx([sum(part) / len(part) for part in parts])
    task = toy_task()
    assert [r["train/lr"] for r in train] == pytest.approx([task.schedule(r["step"] - 1) for r in train])
    assert all(r["train/images_per_s"] > 0 for r in train)


class Telling(torch.nn.Sequential):
    """Reports the number of its call, from 1, as a statistic."""

    calls = 0

    def forward(self, x):
        if self.training:
            self.calls += 1
            add_statistic("calls", torch.tensor(float(self.calls)))
        return super().forward(x)


def test_meter_logs_the_means_of_what_layers_report():
    rows, task = Rows(), toy_task()
    task.model = Telling(*task.model)
    fit([StepMeter(every_n_steps=4)], logger=rows, task=task, max_epochs=1)
    assert [r["train/calls"] for r in rows.rows if "train/loss" in r] == [2.5, 5.5]


def test_meter_counts_optimiser_steps_under_accumulation():
    rows, losses = Rows(), Losses()
    fit([losses, StepMeter(every_n_steps=2)], logger=rows, max_epochs=1, accumulate_grad_batches=2)
    train = [r for r in rows.rows if "train/loss" in r]
    assert [r["step"] for r in train] == [2, 3]
    assert train[0]["train/loss"] == pytest.approx(2 * sum(losses.losses[:4]) / 4)  # Lightning halves the loss of each batch


def test_throughput_leaves_evaluation_out(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    class Waits(pl.Callback):
        def on_train_batch_start(self, *args):
            clock[0] += 0.5

        def on_validation_batch_end(self, *args):
            clock[0] += 100

    rows = Rows()
    fit([Waits(), StepMeter(every_n_steps=50)], logger=rows, max_epochs=1)
    [row] = [r for r in rows.rows if "train/loss" in r]
    assert row["train/images_per_s"] == pytest.approx(96 / (6 * 0.5))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_stops_at_the_reading_and_names_the_step(bad):
    with pytest.raises(FloatingPointError, match=re.escape(f"training loss at step 9 is {bad}. Lower task.optimizer.lr")):
        fit([Losses(at=9, bad=bad), StepMeter(every_n_steps=4)])


def test_names_the_step_under_accumulation():
    with pytest.raises(FloatingPointError, match=re.escape("training loss at step 3 is nan")):
        fit([Losses(at=3), StepMeter(every_n_steps=50)], accumulate_grad_batches=2)


def test_no_checkpoint_after_a_loss_that_is_not_finite(tmp_path):
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1, enable_version_counter=False)
    with pytest.raises(FloatingPointError, match="training loss at step 3 is nan"):
        fit([Losses(at=3), StepMeter(every_n_steps=50), saver], enable_checkpointing=True)
    assert [p.name for p in tmp_path.iterdir()] == ["epoch=0-step=2.ckpt"]


def test_no_checkpoint_of_weights_that_are_not_finite(tmp_path):
    class Poison(pl.Callback):
        def on_train_batch_end(self, trainer, task, *args):
            if trainer.global_step == 6:
                task.model[1].weight.data[0, 0] = math.nan

    with pytest.raises(FloatingPointError, match=re.escape("weights after step 6 are not finite: model.1.weight. No checkpoint was saved. Lower")):
        fit([Poison(), StepMeter(every_n_steps=50), ModelCheckpoint(tmp_path, save_on_train_epoch_end=True)], enable_checkpointing=True)
    assert not list(tmp_path.iterdir())


def test_one_line_per_epoch(capfd):
    fit([Progress(every_n_steps=4)])
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("epoch")]
    assert len(lines) == 2
    form = r"epoch 2/2  train/loss \d\.\d{4}  \d+ images/s  val/loss \d\.\d{4}  val/top1 0\.\d{4}  val/top5 \d\.\d{4}  \d+\.\d s"
    assert re.fullmatch(form, lines[1])


def test_an_epoch_without_validation_shows_none(capfd):
    fit([Progress(every_n_steps=4)], max_epochs=3, check_val_every_n_epoch=2)
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("epoch")]
    assert ["val/top1" in line for line in lines] == [False, True, False]


def test_bar_on_a_terminal(monkeypatch, capfd):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    progress = Progress(every_n_steps=4)
    fit([progress])
    assert progress.bar.total == progress.bar.n == 12 and progress.bar.disable
    assert capfd.readouterr().out.count("epoch 2/2") == 1


def test_report(tmp_path):
    rows, task = Rows(), toy_task()
    report = PredictionReport(task.classes, mean=[0.5] * 3, std=[0.2] * 3, folder=tmp_path, count=5)
    trainer = pl.Trainer(callbacks=[report], devices=1, logger=rows, enable_checkpointing=False, **QUIET)
    [metrics] = trainer.test(task, datamodule=ToyData(), verbose=False)
    matrix = report.confusion.compute()
    assert matrix.sum() == 103 and matrix.diagonal().sum() / 103 == pytest.approx(metrics["test/top1"])
    assert len(report.wrong) == 5 and all(true != guess for _, true, guess in report.wrong)
    image, caption = report.pictures()[0]
    true, guess = re.fullmatch(r"(\d)\ntaken for (\d)", caption).groups()
    data = ToyData()
    places = [i for i in range(96, 199) if torch.allclose((data.x[i] * 0.2 + 0.5).clamp(0, 1), image)]
    assert [int(data.y[i]) for i in places] == [int(true)] and task(data.x[places]).argmax() == int(guess)
    assert {p.name for p in tmp_path.iterdir()} == {"confusion_matrix.png", "wrong_predictions.png"}


def test_grid_of_nothing_wrong(tmp_path):
    draw_wrong([], tmp_path / "none.png")
    draw_wrong([(torch.rand(1, 4, 4), "grey")] * 9, tmp_path / "nine.png")
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("none.png", "nine.png"))
