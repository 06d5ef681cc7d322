"""Run folders: never overwritten, resumed only by the recipe they began with."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch

from layerzoo.config import DataConfig, MetaConfig, ModelConfig, OptimizerConfig, Recipe, TaskConfig
from layerzoo.recipe import read_recipe, sha256
from layerzoo.train import folder as folder_module
from layerzoo.train.folder import last_checkpoint, open_folder, versions


@pytest.fixture
def recipe(tmp_path):
    task = TaskConfig(optimizer=OptimizerConfig("sgd", lr=0.1))
    return Recipe(MetaConfig("toy"), ModelConfig("vit_tiny"), DataConfig("digits"), task, seed=3, runs=str(tmp_path / "runs"))


def save_progress(folder):
    last_checkpoint(folder).parent.mkdir()
    last_checkpoint(folder).touch()
    return last_checkpoint(folder)


def changed(recipe, section, **options):
    return dataclasses.replace(recipe, **{section: dataclasses.replace(getattr(recipe, section), **options)})


def test_each_run_has_a_new_folder(recipe):
    base = f"{recipe.runs}/a/b/{sha256(recipe)[:8]}-s3"
    found = [open_folder(recipe, "a/b", "never") for _ in range(3)]
    assert [(str(folder), ckpt) for folder, ckpt in found] == [(base, None), (f"{base}-1", None), (f"{base}-2", None)]


def test_two_that_start_at_once_get_two_folders(recipe, monkeypatch):
    mkdir = Path.mkdir

    def slow(path, *args, **options):
        monkeypatch.setattr(Path, "mkdir", mkdir)
        other.append(open_folder(recipe, "a", "never")[0])  # between our look and our mkdir
        return mkdir(path, *args, **options)

    other = []
    open_folder(recipe, "a", "never")
    monkeypatch.setattr(Path, "mkdir", slow)
    mine, _ = open_folder(recipe, "a", "never")
    assert mine != other[0] and mine.is_dir() and other[0].is_dir()


def test_holds_the_recipe_and_what_it_ran_on(recipe):
    folder, _ = open_folder(recipe, "a", "never")
    assert read_recipe(str(folder / "recipe.yaml"), [f"runs={recipe.runs}"]) == recipe
    env = json.loads((folder / "env.json").read_text())
    assert env["versions"] == versions() and env["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert env["threads"] == torch.get_num_threads() and {"platform", "gpus", "git"} <= env.keys()


def test_auto_takes_the_newest_that_can_be_resumed(recipe):
    assert open_folder(recipe, "a", "auto")[1] is None
    first, second, third = (open_folder(recipe, "a", "never")[0] for _ in range(3))
    save_progress(first)
    kept = save_progress(second)
    assert open_folder(recipe, "a", "auto") == (second, kept)
    assert open_folder(changed(recipe, "task", tta="flip"), "a", "auto")[1] is None
    assert third.is_dir()


def test_a_run_folder_or_its_checkpoint_can_be_named(recipe):
    folder, _ = open_folder(recipe, "a", "never")
    kept = save_progress(folder)
    assert open_folder(recipe, "a", str(folder)) == (folder, kept) == open_folder(recipe, "a", str(kept))


def test_hardware_and_logging_may_change(recipe):
    folder, _ = open_folder(recipe, "a", "never")
    save_progress(folder)
    other = changed(changed(recipe, "trainer", devices=2, log_every_n_steps=7), "logging", wandb="disabled")
    assert open_folder(other, "a", str(folder))[0] == folder


def test_another_recipe_is_refused_with_the_differences(recipe):
    folder, _ = open_folder(recipe, "a", "never")
    save_progress(folder)
    other = dataclasses.replace(changed(recipe, "task", optimizer=OptimizerConfig("sgd", lr=0.2)), seed=4)
    message = (
        f"--resume: got seed is 4, in the run 3; task.optimizer.lr is 0.2, in the run 0.1, expected the recipe that {folder} began with. "
        "Start a new run without --resume, or take the differences back.")
    with pytest.raises(ValueError, match=re.escape(message)):
        open_folder(other, "a", str(folder))


def test_nothing_to_resume(recipe, tmp_path):
    message = f"--resume: got '{tmp_path}/x', expected auto, never, or a run folder with a training checkpoint; {tmp_path}/x/ckpt/last.ckpt is not there"
    with pytest.raises(ValueError, match=re.escape(message)):
        open_folder(recipe, "a", f"{tmp_path}/x")


def test_other_ranks_write_nothing(recipe, monkeypatch):
    monkeypatch.setattr("pytorch_lightning.utilities.rank_zero_only.rank", 1)
    folder, _ = open_folder(recipe, "a", "never")
    assert not folder.exists()


def test_outside_a_checkout_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "__file__", str(tmp_path / "a" / "b" / "c.py"))
    assert folder_module._git() is None
