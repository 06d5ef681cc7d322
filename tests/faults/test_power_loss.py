"""Power that fails at any moment of a save: whatever the file system kept of what was not synced, a whole checkpoint is read."""

import os
import shutil
import warnings
from functools import partial

import pytest
from forge import OPTIONS
from power import lay, recorded
from ranks import recipe
from trainings import save, whole_step

import layerzoo as lz
from layerzoo.checkpoint import save_checkpoint, sweep, vanish, verify_checkpoint
from layerzoo.train.folder import open_folder
from layerzoo.train.saving import place


def outcomes(record, moments, work):
    """How often each step was the newest whole one after a restart, which leaves no litter and saves again."""
    found = {}
    for k, tree in enumerate(record.trees(moments)):
        run = lay(tree, work / str(k))
        sweep(run / "ckpt")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of those that are damaged
            step = whole_step(run / "ckpt")
        assert all(path.name.startswith("step-") for path in (run / "ckpt").glob("*")), "litter"
        save(run / "ckpt", 9)
        assert whole_step(run / "ckpt") == 9
        found[step] = found.get(step, 0) + 1
        shutil.rmtree(run)
    return found


CASES = {
    "first": ([], partial(save, step=1), {-1, 1}, 1), "next": ([1, 2], partial(save, step=3), {2, 3}, 3),
    "again": ([1, 2], partial(save, step=2), {2}, 2), "delete": ([1, 2, 3], lambda folder: vanish(place(folder, 1)), {3}, 3)}


@pytest.mark.parametrize("case", CASES)
def test_what_is_left_of_a_training_checkpoint_is_whole(tmp_path, monkeypatch, case):
    before, action, allowed, last = CASES[case]
    run, work = tmp_path / "run", tmp_path / "work"
    run.mkdir()
    work.mkdir()
    for step in before:
        save(run / "ckpt", step)
    record = recorded(run, lambda: action(run / "ckpt"), monkeypatch)
    found = outcomes(record, record.moments, work)
    assert found.keys() == allowed
    assert outcomes(record, record.moments[-1:], work).keys() == {last}, "what was said to be saved is saved"


@pytest.mark.slow
def test_a_run_that_has_saved_is_found_again(tmp_path, monkeypatch):
    """From the first folder on: whatever is left, the same command begins or goes on, and after a save it goes on."""
    def begin():
        folder, resumed = open_folder(recipe(str(tmp_path / "runs"), 1), "toy", "auto")
        assert resumed is None
        save(folder / "ckpt", 1)

    monkeypatch.setattr("layerzoo.train.folder._environment", dict)  # which asks git
    (tmp_path / "runs").mkdir()
    record = recorded(tmp_path / "runs", begin, monkeypatch)
    for moments, allowed in ((record.moments, {None, "step-000000001"}), (record.moments[-1:], {"step-000000001"})):
        found = set()
        for k, tree in enumerate(record.trees(moments)):
            runs = lay(tree, tmp_path / f"{len(moments)}-{k}")
            folder, resumed = open_folder(recipe(str(runs), 1), "toy", "auto")
            found.add(resumed and resumed.name)
            assert (folder / "recipe.yaml").is_file() and [path.name for path in (runs / "toy").iterdir()] == [folder.name]
        assert found == allowed


def test_the_replay_finds_what_is_not_synced(tmp_path, monkeypatch):
    """Each sync left out alone loses something."""
    for skipped in range(1, 20):
        run, work, left = tmp_path / f"run{skipped}", tmp_path / f"work{skipped}", skipped
        run.mkdir()
        work.mkdir()
        save(run / "ckpt", 1)

        def skips(handle):
            nonlocal left
            left -= 1
            if left:
                sync(handle)

        def saved():
            nonlocal sync
            sync = os.fsync
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", skips)
                save(run / "ckpt", 2)

        sync = None
        record = recorded(run, saved, monkeypatch)
        if left > 0:
            break
        assert outcomes(record, record.moments[-1:], work).keys() != {2}, skipped
    assert skipped == 7, "four files, the folder, its name"


@pytest.mark.slow
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_left_of_a_published_one_is_whole(tmp_path, monkeypatch, overwrite):
    root, target = tmp_path / "root", tmp_path / "root" / "deep" / "er"
    root.mkdir()
    model = lz.create_model("hybrid_nano", num_classes=10, img_size=32)
    if overwrite:
        save_checkpoint(target, model, **OPTIONS, recipe_name="old")
    record = recorded(root, lambda: save_checkpoint(target, model, **OPTIONS, recipe_name="new", overwrite=overwrite), monkeypatch)
    for moments, allowed in ((record.moments, {"old" if overwrite else None, "new"}), (record.moments[-1:], {"new"})):
        found = set()
        for tree in record.trees(moments):
            after = lay(tree, tmp_path / "after")
            sweep(after / "deep")
            found.add(verify_checkpoint(after / "deep" / "er")["recipe_name"] if (after / "deep" / "er").exists() else None)
            assert {path.name for path in (after / "deep").glob("*")} <= {"er"}, "litter"
            shutil.rmtree(after)
        assert found == allowed
