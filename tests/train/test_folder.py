"""Run folders: never overwritten, resumed only by the recipe they began with."""

import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from layerzoo.config import DataConfig, MetaConfig, ModelConfig, OptimizerConfig, Recipe, TaskConfig
from layerzoo.recipe import read_recipe, sha256
from layerzoo.train import folder as folder_module
from layerzoo.train.folder import checkpoints, locked, open_folder, tell, versions
from layerzoo.train.saving import place, write


@pytest.fixture
def recipe(tmp_path):
    task = TaskConfig(optimizer=OptimizerConfig("sgd", lr=0.1))
    return Recipe(MetaConfig("toy"), ModelConfig("vit_tiny"), DataConfig("digits"), task, seed=3, runs=str(tmp_path / "runs"))


def save_progress(folder):
    kept = place(checkpoints(folder), 3)
    write(kept, {"epoch": 0, "global_step": 3}, {})
    return kept


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


def test_auto_takes_the_newest_run(recipe):
    first, ckpt = open_folder(recipe, "a", "auto")
    assert ckpt is None and first.is_dir()
    save_progress(first)
    second, _ = open_folder(recipe, "a", "never")
    (second / "recipe.yaml").unlink()  # killed before it was written
    assert open_folder(recipe, "a", "auto") == (second, None) and (second / "recipe.yaml").exists()
    kept = save_progress(second)
    assert open_folder(recipe, "a", "auto") == (second, kept)
    assert open_folder(changed(recipe, "task", tta="flip"), "a", "auto")[1] is None


def test_a_run_folder_can_be_named(recipe):
    folder, _ = open_folder(recipe, "a", "never")
    kept = save_progress(folder)
    open_folder(recipe, "a", "never")
    assert open_folder(recipe, "a", str(folder)) == (folder, kept)


def test_status_is_replaced_whole(tmp_path):
    tell(tmp_path, state="running")
    tell(tmp_path, state="done", checkpoint=None)
    assert [p.name for p in tmp_path.iterdir()] == ["status.json"]
    status = json.loads((tmp_path / "status.json").read_text())
    assert status.pop("time") > 1e9 and status == {"state": "done", "checkpoint": None}


def test_a_folder_holds_one_run(tmp_path):
    holder = f"import sys, time\nfrom pathlib import Path\nfrom layerzoo.train.folder import locked\nwith locked(Path({str(tmp_path)!r})):\n    print(flush=True)\n    time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        message = f"run folder {tmp_path}: got a run in it (host {socket.gethostname()}, process {other.pid}), expected none. Wait for it, or begin another "
        with pytest.raises(ValueError, match=re.escape(message)), locked(tmp_path):
            pass
        other.kill()
        other.wait()
    with locked(tmp_path):
        assert f"process {os.getpid()}" in (tmp_path / ".lock").read_text()


def test_a_lock_that_a_file_system_lacks_keeps_nobody_out(tmp_path, monkeypatch):
    monkeypatch.setattr("fcntl.lockf", lambda *args: (_ for _ in ()).throw(OSError(37, "No locks available")))
    with locked(tmp_path):
        assert "process" in (tmp_path / ".lock").read_text()


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
        "Begin a new run with --fresh, or take the differences back.")
    with pytest.raises(ValueError, match=re.escape(message)):
        open_folder(other, "a", str(folder))


def test_nothing_to_resume(recipe, tmp_path):
    message = f"--resume: got '{tmp_path}/x', expected a run folder, with recipe.yaml in it. Look below {recipe.runs}/a."
    with pytest.raises(ValueError, match=re.escape(message)):
        open_folder(recipe, "a", f"{tmp_path}/x")


def test_other_ranks_write_nothing(recipe, monkeypatch):
    monkeypatch.setattr("pytorch_lightning.utilities.rank_zero_only.rank", 1)
    folder, _ = open_folder(recipe, "a", "never")
    assert not folder.exists()


def test_outside_a_checkout_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "__file__", str(tmp_path / "a" / "b" / "c.py"))
    assert folder_module._git() is None
