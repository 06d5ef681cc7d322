"""What is said of a loss that is not finite."""

import math
import re
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from toy import QUIET, ToyData, toy_task
from torch import nn

from layerzoo.train.callbacks import StepMeter
from layerzoo.train.nonfinite import explain, first_spoiled

NAMES = [f"image{i}" for i in range(8)]


class Breaks(nn.Module):
    """Gives inf where a sample begins with 9."""

    def forward(self, x):
        return torch.where(x.flatten(1)[:, :1] == 9, math.inf, x) if x.ndim == 2 else x


@pytest.fixture
def case():
    """A task and its batch."""
    task = toy_task("dropout")
    task.model = nn.Sequential(nn.Flatten(), nn.Sequential(Breaks(), nn.Linear(48, 7)))
    return task, (torch.randn(8, 3, 4, 4), torch.arange(8) % 7)


def test_the_innermost_layer_that_breaks_and_its_samples(case):
    task, (x, y) = case
    x[2, 0, 0, 0] = x[5, 0, 0, 0] = 9
    assert explain(task, (x, y), 0, NAMES) == "1.0 (Breaks) is the first layer whose output is not, for image2, image5"
    assert not task.model[1][0]._forward_hooks


def test_images(case):
    task, (x, y) = case
    x[1:6, 0, 0, 0] = math.nan
    assert explain(task, (x, y), 0, NAMES) == "images are not finite: image1, image2, image3 and 2 more"


def test_weights(case):
    task, batch = case
    assert first_spoiled(task) is None
    task.model[1][1].bias.data[3] = math.inf
    assert explain(task, batch, 0, NAMES) == "model.1.1.bias is not finite, since the step before"


def test_statistics_that_this_step_spoiled_are_not_blamed(case):
    task, (x, y) = case
    task.model = nn.Sequential(nn.BatchNorm2d(3), task.model)
    x[1, 0, 0, 0] = math.nan
    task.training_step((x, y))
    assert first_spoiled(task) == "model.0.running_mean"
    assert explain(task, (x, y), 0, NAMES) == "images are not finite: image1"
    assert explain(task, (torch.randn(8, 3, 4, 4), y), 0, NAMES) == "model.0.running_mean is not finite, since the step before"


def test_the_loss_alone(case):
    task, batch = case
    assert explain(task, batch, 0, NAMES[:2]) == "every layer is finite, the loss alone is not, of image0, image1"


class Poison(pl.Callback):
    """Spoils one sample of the batch of a step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, task, batch, batch_idx):
        if trainer.global_step == self.step:
            batch[0][3] = math.nan


def test_a_run_stops_before_the_weights_are_spoiled():
    task = toy_task()
    trainer = pl.Trainer(callbacks=[Poison(7), StepMeter(50)], max_epochs=2, devices=1, logger=False, enable_checkpointing=False, **QUIET)
    message = "training loss at step 8 is nan: images are not finite: sample 3 of the batch. Lower task.optimizer.lr"
    with pytest.raises(FloatingPointError, match=re.escape(message)):
        trainer.fit(task, datamodule=ToyData())
    assert trainer.global_step == 7 and first_spoiled(task) is None


def test_where_looking_costs_the_reading_names_step_and_samples():
    meter = StepMeter(every_n_steps=4)
    meter.first_step, meter.batch_idx = 4, 7
    loader = SimpleNamespace(names=lambda epoch, step: [f"{epoch}/{step}/{i}" for i in range(8)])
    trainer = SimpleNamespace(accumulate_grad_batches=1, global_rank=1, current_epoch=3, train_dataloader=loader)
    message = "training loss at step 6 is nan (samples of rank 1: 3/5/0, 3/5/1, 3/5/2 ...). Lower task.optimizer.lr"
    with pytest.raises(FloatingPointError, match=re.escape(message)):
        meter._check(trainer, [1.0, math.nan, 1.0, 1.0])
