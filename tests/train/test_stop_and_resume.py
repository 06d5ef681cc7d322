"""A run that was asked to stop and went on equals the unbroken one, bit for bit, in weights and in metrics."""

import dataclasses
import json
import os
import signal
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
from outcome import equal, left

from layerzoo.config import AugmentConfig, DataConfig, LoggingConfig, MetaConfig, ModelConfig, OptimizerConfig, Recipe, TaskConfig, TrainerConfig
from layerzoo.data.sources import open_source
from layerzoo.pack import pack
from layerzoo.train import run, saving
from layerzoo.train.keeping import Keeper
from layerzoo.train.stopping import Signals

STOPS = {  # eight batches an epoch, three of validation
    "first step": ("step", 1), "middle": ("step", 11), "before the last step": ("step", 15), "last step": ("step", 16),
    "validation": ("val", 1, 0), "end of validation": ("val", 1, 3), "end of an epoch": ("epoch", 1)}


class Asks(pl.Callback):
    """Sends this process a signal at one place."""

    def __init__(self, place, number):
        self.place, self.number, self.batches = place, number, 0

    def ask(self, *place):
        if place == self.place:
            os.kill(os.getpid(), self.number)

    def on_train_batch_end(self, trainer, *args):
        self.batches += 1
        self.ask("step", self.batches)

    def on_validation_batch_end(self, trainer, task, outputs, batch, batch_idx):
        self.ask("val", trainer.current_epoch, batch_idx)

    def on_validation_epoch_end(self, trainer, *args):
        self.ask("epoch", trainer.current_epoch)


def make(folder, accumulate=1, **data):
    """Everything random or averaged that there is: drop path, order, crops, mixup, an average of weights."""
    data = DataConfig(
        "digits", img_size=8, batch_size=16, eval_batch_size=100, train_fraction=0.1, augment=AugmentConfig(crop_padding=1, mixup=0.3), **data)
    model = ModelConfig("vit_tiny", drop_path=0.2, options={"depth": 1, "block": {"num_heads": 3, "dropout": 0.1}})
    trainer = TrainerConfig(max_epochs=3, accelerator="cpu", log_every_n_steps=3, accumulate_grad_batches=accumulate)
    task = TaskConfig(ema_decay=0.5, optimizer=OptimizerConfig("adamw", lr=3e-3))
    return Recipe(MetaConfig("toy"), model, data, task, trainer, LoggingConfig(wandb="disabled"), runs=str(folder))


def asked(monkeypatch, recipe, place, number=signal.SIGTERM):
    """Run it until it is asked to stop; the exit code."""
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(run, "_callbacks", lambda recipe: [Asks(place, number)])
        run.fit(recipe, recipe_name="toy")
    return stopped.value.code


STREAMED = {"pipeline": "streaming", "num_workers": 2}
CASES = [
    pytest.param(place, accumulate, data, marks=() if not data and (place, accumulate) in (("middle", 2), ("validation", 1)) else pytest.mark.slow)
    for place in STOPS for accumulate in (1, 2) for data in ({}, STREAMED)]


@pytest.mark.parametrize("place, accumulate, data", CASES)
def test_stopped_and_resumed_equals_unbroken(tmp_path, monkeypatch, place, accumulate, data):
    whole = run.fit(make(tmp_path / "whole", accumulate, **data), recipe_name="toy")
    recipe = make(tmp_path / "parts", accumulate, **data)
    assert asked(monkeypatch, recipe, STOPS[place]) == 143
    [folder] = (tmp_path / "parts" / "toy").iterdir()
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "stopped" and status["checkpoint"] == max(p.name for p in (folder / "ckpt").iterdir())
    assert not (folder / "checkpoint").exists()
    parts = run.fit(recipe, recipe_name="toy")
    assert parts.folder == folder and json.loads((folder / "status.json").read_text())["state"] == "done"
    equal(left(whole.folder), left(parts.folder))


@pytest.mark.slow
def test_shards_stopped_and_resumed_are_the_folder_unbroken(tmp_path, monkeypatch):
    for split, images in open_source("digits").splits.items():
        for i in range(0, len(images), 10):
            (tmp_path / "digits" / split / str(images.labels[i])).mkdir(parents=True, exist_ok=True)
            images.read(i).save(tmp_path / "digits" / split / str(images.labels[i]) / f"{i}.png")
    pack(f"folder:{tmp_path}/digits", tmp_path / "shards", 1)
    recipes = [make(tmp_path / name, **STREAMED) for name in ("whole", "parts")]
    recipes = [dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, source=source, train_fraction=1.0)) for recipe, source in zip(
        recipes, (f"folder:{tmp_path}/digits", f"wds:{tmp_path}/shards"))]
    whole = run.fit(recipes[0], recipe_name="toy")
    assert asked(monkeypatch, recipes[1], ("step", 13)) == 143
    equal(left(whole.folder), left(run.fit(recipes[1], recipe_name="toy").folder))


@pytest.mark.slow
def test_stopped_at_every_step(tmp_path, monkeypatch):
    """Each process takes one step, or one batch of validation, and is asked to stop."""
    whole = run.fit(make(tmp_path / "whole"), recipe_name="toy")
    recipe, stops = make(tmp_path / "parts"), 0
    with monkeypatch.context() as patch:
        patch.setattr(run, "_callbacks", lambda recipe: [Asks(("step", 1), signal.SIGTERM)])
        while True:
            try:
                parts = run.fit(recipe, recipe_name="toy")
                break
            except SystemExit:
                stops += 1
    assert stops == 24
    equal(left(whole.folder), left(parts.folder))


def test_ctrl_c_saves_and_ends_with_130(tmp_path, monkeypatch):
    assert asked(monkeypatch, make(tmp_path), ("step", 3), signal.SIGINT) == 130
    assert [p.name for p in tmp_path.glob("toy/*/ckpt/*")] == ["step-000000003"]


def test_other_devices_than_before_are_said(tmp_path, capsys):
    keeper = Keeper(tmp_path, Signals(), minutes=1, seconds=1)
    for devices in (1, 4):
        keeper.on_load_checkpoint(SimpleNamespace(world_size=devices, is_global_zero=True), None, {"world_size": 4})
    assert capsys.readouterr().out == "devices 1, where the run began with 4: its result is not that of 4 to the bit\n"


def test_an_epoch_is_saved_on_the_way_and_two_are_kept(tmp_path):
    recipe = make(tmp_path)
    recipe.trainer.save_minutes = 1e-6
    result = run.fit(recipe, recipe_name="toy")
    kept = saving.saved(result.folder / "ckpt")
    assert [p.name for p in kept] == ["step-000000023", "step-000000024"]
