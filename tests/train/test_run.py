"""fit, evaluate and predict from end to end, on a sliver of the digits."""

import dataclasses
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import wandb_reader
from outcome import ALONE, rows
from torch import nn

import layerzoo as lz
from layerzoo.config import (
    AugmentConfig,
    DataConfig,
    LoggingConfig,
    MetaConfig,
    ModelConfig,
    OptimizerConfig,
    Recipe,
    ScheduleConfig,
    TaskConfig,
    TrainerConfig,
)
from layerzoo.errors import RankLost
from layerzoo.recipe import save, sha256
from layerzoo.train import run, saving
from layerzoo.train.callbacks import Progress
from layerzoo.train.loggers import read_metrics

MODEL = ModelConfig("vit_tiny", drop_path=0.2, options={"depth": 2})


@pytest.fixture
def recipe(tmp_path):
    data = DataConfig("digits", img_size=8, batch_size=16, eval_batch_size=100, train_fraction=0.1, augment=AugmentConfig(crop_padding=1))
    task = TaskConfig(ema_decay=0.5, tta="flip", optimizer=OptimizerConfig("adamw", lr=3e-3))
    trainer = TrainerConfig(max_epochs=3, accelerator="cpu", devices=1, log_every_n_steps=4)
    return Recipe(MetaConfig("toy"), MODEL, data, task, trainer, LoggingConfig(wandb="disabled"), runs=str(tmp_path / "runs"))


def changed(recipe, section, **options):
    return dataclasses.replace(recipe, **{section: dataclasses.replace(getattr(recipe, section), **options)})


def test_a_run_from_end_to_end(recipe, capsys):
    recipe = changed(recipe, "task", schedule=ScheduleConfig(warmup_epochs=2, start=0.1))  # longer than an evaluation's one epoch
    result = run.fit(recipe, recipe_name="toy/a")
    out = capsys.readouterr().out
    folder = Path(recipe.runs) / "toy" / "a" / f"{sha256(recipe)[:8]}-s0"
    assert (result.folder, result.checkpoint) == (folder, folder / "checkpoint")
    assert {p.name for p in folder.iterdir()} == {
        "recipe.yaml", "env.json", "metrics.jsonl", "status.json", ".lock", "ckpt", "checkpoint", "confusion_matrix.png", "wrong_predictions.png"}
    for line in (
        f"run    {folder}\n", "data   digits: 10 classes, 143 train, 355 val, 355 test\n", r"model  vit_tiny: 0\.9\d\d M parameters, \d",
        "batch  16 = 1 x cpu x 16, 32-true; 8 steps an epoch; learning rate 0.003\n", r"epoch 3/3  train/loss \d"):
        assert re.search(line, out), line

    model = lz.load(result.checkpoint)
    manifest = model.manifest
    assert manifest["recipe_sha256"] == sha256(recipe) and manifest["recipe"] == dataclasses.asdict(recipe)
    assert manifest["recipe_name"] == "toy/a" and manifest["classes"] == [str(i) for i in range(10)]
    assert manifest["metrics"] == pytest.approx(result.metrics) and set(result.metrics) == {"test/loss", "test/top1", "test/top5"}
    assert rows(folder)[-1].items() >= result.metrics.items()

    assert run.evaluate(recipe, recipe_name="toy/a", checkpoint=result.checkpoint, split="test") == pytest.approx(result.metrics)
    other = changed(recipe, "data", train_fraction=0.3)  # of another mean and deviation, which must not count
    assert run.evaluate(other, recipe_name="toy/a", checkpoint=result.checkpoint, split="test") == pytest.approx(result.metrics)
    validated = run.evaluate(recipe, recipe_name="toy/a", checkpoint=result.checkpoint, split="val")
    assert validated == pytest.approx({k.replace("test", "val"): v for k, v in result.metrics.items()})  # digits validate on the test images
    classes, probabilities = run.predict(recipe, recipe_name="toy/a", checkpoint=result.checkpoint)
    assert classes == manifest["classes"] and probabilities.shape == (355, 10)
    data = run._data(recipe)
    labels = torch.cat([y for _, y in data.test_dataloader()])
    assert (probabilities.argmax(1) == labels).float().mean().item() == pytest.approx(result.metrics["test/top1"])

    kept = saving.saved(folder / "ckpt")
    assert [p.name for p in kept] == ["step-000000008", "step-000000024"]  # of the second epoch it would cost more than a hundredth
    about = saving.verify(kept[-1])
    assert about["recipe_sha256"] == sha256(recipe) and about["step"] == 24 and "torch" in about["versions"]
    assert run.fit(recipe, recipe_name="toy/a") == result
    assert "is done already" in capsys.readouterr().out


def test_resumed_run_equals_the_unbroken_one(recipe, monkeypatch):
    whole = run.fit(recipe, recipe_name="whole")

    class Killed(Exception):
        pass

    def die(self, trainer, *args):
        if trainer.global_step == 14:  # eight steps an epoch: in the second
            raise Killed

    monkeypatch.setattr(Progress, "on_train_batch_start", die)
    with pytest.raises(Killed):
        run.fit(recipe, recipe_name="parts")
    monkeypatch.undo()
    parts = run.fit(recipe, recipe_name="parts")
    assert rows(parts.folder) == rows(whole.folder) and len(rows(whole.folder)) == 3 * 3 + 1
    ours, theirs = (lz.load(r.checkpoint).state_dict() for r in (whole, parts))
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    shutil.rmtree(parts.checkpoint)
    again = run.fit(recipe, recipe_name="parts", resume=str(parts.folder))  # nothing left to train
    assert again.metrics == parts.metrics


def test_seed_decides(recipe):
    results = [run.fit(dataclasses.replace(recipe, seed=seed), recipe_name="toy", resume="never") for seed in (0, 0, 1)]
    losses = [r.metrics["test/loss"] for r in results]
    assert losses[0] == losses[1] != losses[2]
    assert len({r.folder for r in results}) == 3


def test_divergence_ends_the_run_without_a_checkpoint(recipe):
    recipe = changed(recipe, "task", optimizer=OptimizerConfig("sgd", lr=1e30))
    with pytest.raises(FloatingPointError, match=r"training loss at step 2 is (nan|inf): .* (is not finite|is the first layer whose output is not).*\. Lower task\.optimizer\.lr"):
        run.fit(recipe, recipe_name="toy")
    [folder] = Path(recipe.runs, "toy").iterdir()
    assert not (folder / "ckpt").exists() and not (folder / "checkpoint").exists()


def test_whitening_sees_normalised_training_images(recipe):
    recipe = changed(changed(recipe, "trainer", max_epochs=1), "model", name="speednet", drop_path=None, options={})
    model = lz.load(run.fit(recipe, recipe_name="toy").checkpoint)
    images = run._data(recipe).training_images(143)
    patches = nn.functional.unfold(images, 2).transpose(1, 2).flatten(0, 1)
    white = patches @ model.stem.filters[:12].flatten(1).T
    assert (white.T @ white / len(white)).diagonal()[0].item() == pytest.approx(1, abs=0.05)


def test_accumulation_splits_the_batch(recipe):
    recipe = changed(recipe, "trainer", max_epochs=1, accumulate_grad_batches=2)
    result = run.fit(recipe, recipe_name="toy")
    assert [r["step"] for r in rows(result.folder) if "train/loss" in r] == [4, 8, 9]  # 17 batches of 8
    message = "data.batch_size: got 16, expected a multiple of trainer.accumulate_grad_batches = 3. Use 15."
    with pytest.raises(ValueError, match=re.escape(message)):
        run.fit(changed(recipe, "trainer", accumulate_grad_batches=3), recipe_name="toy")


def test_callbacks_of_the_recipe(recipe):
    stopper = {"class_path": "pytorch_lightning.callbacks.EarlyStopping", "init_args": {"monitor": "val/loss", "stopping_threshold": 100.0}}
    result = run.fit(changed(recipe, "trainer", callbacks=[stopper]), recipe_name="toy")
    assert max(r["epoch"] for r in rows(result.folder) if "train/loss" in r) == 0


def test_checkpoint_of_other_classes_is_refused(recipe, tmp_path):
    model = lz.create_model("vit_tiny", num_classes=3, img_size=8, options=MODEL.options)
    from layerzoo.checkpoint import save_checkpoint

    folder = save_checkpoint(tmp_path / "other", model, classes=["a", "b", "c"], mean=[0.5] * 3, std=[0.5] * 3, metrics={})
    message = f"--checkpoint: got {folder} for 3 classes (a, b, c ...), expected the 10 classes of toy (0, 1, 2 ...). Choose another checkpoint or recipe."
    with pytest.raises(ValueError, match=re.escape(message)):
        run.evaluate(recipe, recipe_name="toy", checkpoint=folder, split="test")


def test_secrets_reach_no_file_and_the_artifact_is_logged(recipe, monkeypatch):
    secrets = {"WANDB_API_KEY": "5ecre7" * 6 + "abcd", "HF_TOKEN": "hf_planted5ecre7"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    recipe = changed(changed(recipe, "trainer", max_epochs=1), "logging", wandb="offline", log_model=True)
    result = run.fit(recipe, recipe_name="toy/b")
    for path in result.folder.rglob("*"):
        assert path.is_dir() or not any(secret.encode() in path.read_bytes() for secret in secrets.values()), path
    [file] = result.folder.glob("wandb/offline-run-*/*.wandb")
    logged = wandb_reader.read(file)
    assert logged["config"]["recipe"]["model"]["name"] == "vit_tiny" and logged["config"]["recipe_sha256"] == sha256(recipe)
    assert logged["config"]["cost"].keys() == {"params", "flops", "activation_bytes"} and "torch" in logged["config"]["versions"]
    assert logged["exit_code"] == 0 and (logged["group"], logged["name"]) == ("toy/b", "toy/b-s0")
    requests = [r.request.log_artifact.artifact for r in wandb_reader.records(file) if r.request.HasField("log_artifact")]
    artifacts = requests or [r.artifact for r in wandb_reader.records(file) if r.WhichOneof("record_type") == "artifact"]
    assert [(a.name, a.type) for a in artifacts if a.type == "model"] == [("toy-b", "model")]


def test_a_failed_run_is_marked_as_failed(recipe):
    recipe = changed(changed(recipe, "task", optimizer=OptimizerConfig("sgd", lr=1e30)), "logging", wandb="offline")
    with pytest.raises(FloatingPointError):
        run.fit(recipe, recipe_name="toy")
    [file] = Path(recipe.runs).glob("toy/*/wandb/offline-run-*/*.wandb")
    assert wandb_reader.read(file)["exit_code"] == 1


def command(recipe, tmp_path, *options):
    save(recipe, tmp_path / "toy.yaml")
    words = [sys.executable, "-m", "layerzoo", "fit", tmp_path / "toy.yaml", "--runs", tmp_path / "runs", *options]
    return subprocess.Popen(words, env=ALONE | {"OMP_NUM_THREADS": "1"}, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_two_devices_give_the_metrics_of_one(recipe, tmp_path):
    recipe = changed(recipe, "model", drop_path=0.0)  # its draws differ between ranks
    process = command(recipe, tmp_path, "--trainer.devices", "2", "--trainer.strategy", "ddp")
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    [folder] = (tmp_path / "runs" / "toy").iterdir()
    alone = run.fit(recipe, recipe_name="alone")
    assert lz.load(folder / "checkpoint").manifest["metrics"] == pytest.approx(alone.metrics, rel=1e-3)
    assert [r["step"] for r in rows(folder)] == [r["step"] for r in rows(alone.folder)]
    assert out.count("epoch 1/3") == 1 and out.count("batch  16 = 2 x cpu x 8") == 1


@pytest.mark.slow
def test_divergence_ends_the_command_with_1(recipe, tmp_path):
    process = command(recipe, tmp_path, "--task.optimizer.name", "sgd", "--task.optimizer.lr", "1e30")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and re.search(r"^training loss at step 2 is (nan|inf): .*Lower", out, re.MULTILINE)


@pytest.mark.parametrize(("able", "precision"), [({"avx512_bf16": True}, "bf16-mixed"), ({"bf16": True}, "bf16-mixed"), ({"avx2": True}, "32-true")])
def test_precision_auto_is_bfloat16_only_where_the_processor_multiplies_it(recipe, monkeypatch, able, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert run._trainer(changed(recipe, "trainer", precision="auto"), [], []).precision == precision
    assert run._trainer(changed(recipe, "trainer", precision="64-true"), [], []).precision == "64-true"


def test_what_another_rank_did_is_said_as_such():
    two = SimpleNamespace(world_size=2, global_rank=1)
    message = (
        "rank 1: another rank ended, or did not answer in time ([pair.cc:553] Connection closed by peer [127.0.0.1]:1). "
        "Its own message says why; the same command goes on from what is saved.")
    with pytest.raises(RankLost, match=re.escape(message)), run._together(two):
        raise RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:1\nmore")
    for trainer, text in ((two, "shapes differ"), (SimpleNamespace(world_size=1, global_rank=0), "Connection closed by peer")):
        with pytest.raises(RuntimeError, match=text) as caught, run._together(trainer):
            raise RuntimeError(text)
        assert type(caught.value) is RuntimeError


@pytest.mark.parametrize("rule, rate", [("none", 3e-3), ("linear", 3e-3 / 16), ("sqrt", 3e-3 / 4)])
def test_the_learning_rate_follows_the_batch(recipe, rule, rate):
    scaled = dataclasses.replace(recipe.task.optimizer, lr_scaling=rule)
    assert run.peak_rate(dataclasses.replace(recipe, task=dataclasses.replace(recipe.task, optimizer=scaled))) == pytest.approx(rate)


def test_a_scaled_learning_rate_is_said_and_taken(recipe, capsys):
    scaled = dataclasses.replace(recipe.task.optimizer, lr_scaling="linear", lr_batch_size=64)
    short = dataclasses.replace(recipe.trainer, max_epochs=1, log_every_n_steps=1)
    result = run.fit(dataclasses.replace(recipe, trainer=short, task=dataclasses.replace(recipe.task, optimizer=scaled)), recipe_name="t")
    assert "; learning rate 0.00075 = 0.003 per 64, linear\n" in capsys.readouterr().out
    assert max(row["train/lr"] for row in read_metrics(result.folder / "metrics.jsonl") if "train/lr" in row) == pytest.approx(0.00075)
