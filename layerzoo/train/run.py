"""Run a recipe: fit, evaluate, predict."""

from __future__ import annotations

import dataclasses
import importlib
import logging
import math
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor

from layerzoo.checkpoint import save_checkpoint, verify_checkpoint
from layerzoo.config import Recipe, TrainerConfig
from layerzoo.data.datamodule import ImageData
from layerzoo.errors import bad_value
from layerzoo.hub import load
from layerzoo.models import create_model
from layerzoo.recipe import resolved, sha256
from layerzoo.report.cost import Cost, cost
from layerzoo.tasks.classify import Classify
from layerzoo.tasks.optim import multiplies_bfloat16
from layerzoo.train.callbacks import PredictionReport, Progress
from layerzoo.train.folder import last_checkpoint, open_folder, versions
from layerzoo.train.loggers import MetricsFile, PatientWandbLogger, create_wandb
from layerzoo.train.saving import SafeCheckpointIO

WHITENING_IMAGES = 5000


@dataclass(frozen=True)
class RunResult:
    """What a run leaves.

    Fields:
        folder: the run folder.
        metrics: of the test set, such as test/top1.
        checkpoint: the published folder, which `layerzoo.load` takes.
    """

    folder: Path
    metrics: dict[str, float]
    checkpoint: Path


def fit(recipe: Recipe, *, recipe_name: str, resume: str = "never") -> RunResult:
    """Train, test the final (averaged) weights, write the checkpoint.

    Args:
        recipe: what to run.
        recipe_name: names the run folder and the W&B group.
        resume: "never"; "auto" = go on from the newest run of this recipe and seed, whose result is returned if it is
            done, and begin one if there is none; or the path of a run folder.
    Raises:
        ValueError: for options that do not go together, or a run to resume that is another recipe's.
        FloatingPointError: if the loss or the weights cease to be finite, naming the step.
        SystemExit: with 143, if the process is asked to terminate.
    """
    folder, resumed = open_folder(recipe, recipe_name, resume)
    last, published = last_checkpoint(folder), folder / "checkpoint"
    _say(f"run    {folder}" + (f", resumed from {resumed}" if resumed else ""))
    if resume == "auto" and published.exists():
        _say("       is done already")
        return RunResult(folder, verify_checkpoint(published)["metrics"], published)
    pl.seed_everything(recipe.seed, workers=True, verbose=False)
    data = _data(recipe)
    model = create_model(**resolved(recipe)["model"], num_classes=len(data.classes), img_size=recipe.data.img_size, in_chans=data.in_chans)
    if hasattr(model.stem, "init_from_data"):  # asked of the stem, since thousands of images are read for it
        model.init_from_data(data.training_images(WHITENING_IMAGES))
    steps = math.ceil(len(data.train_dataloader()) / recipe.trainer.accumulate_grad_batches)
    task = Classify(model, recipe.task, classes=data.classes, steps_per_epoch=steps, max_epochs=recipe.trainer.max_epochs, seed=recipe.seed)
    price = cost(model, (1, data.in_chans, *model.img_size))
    saver = ModelCheckpoint(last.parent, filename=last.stem, enable_version_counter=False, save_on_train_epoch_end=True)
    with _loggers(recipe, recipe_name, folder) as loggers:
        trainer = _trainer(recipe, loggers, [Progress(recipe.trainer.log_every_n_steps), saver, *_callbacks(recipe)])
        _describe(recipe, data, price, trainer)
        for logger in loggers:
            logger.log_hyperparams({
                "recipe": resolved(recipe), "recipe_sha256": sha256(recipe), "cost": dataclasses.asdict(price), "versions": versions(),
                "precision": trainer.precision})
        try:
            trainer.fit(task, datamodule=data, ckpt_path=resumed, weights_only=True)
        except SIGTERMException:
            raise SystemExit(128 + signal.SIGTERM) from None  # left alone it would end the process as a success
        trainer.callbacks.append(PredictionReport(data.classes, data.mean, data.std, folder, recipe.logging.wrong_predictions))
        metrics = trainer.test(task, datamodule=data, verbose=False)[0]
        if trainer.is_global_zero:
            save_checkpoint(
                published, task.final_model, classes=data.classes, mean=data.mean, std=data.std, metrics=metrics, recipe=resolved(recipe),
                recipe_sha256=sha256(recipe), recipe_name=recipe_name, overwrite=resumed is not None)
            for logger in loggers:
                if recipe.logging.log_model and isinstance(logger, PatientWandbLogger):
                    logger.upload(published, recipe_name.replace("/", "-"), metrics)
    folder = trainer.strategy.broadcast(folder)  # only rank 0 chose it
    return RunResult(folder, metrics, folder / published.name)


def evaluate(recipe: Recipe, *, recipe_name: str, checkpoint: str | Path, split: Literal["val", "test"]) -> dict[str, float]:
    """Loss and accuracies of a checkpoint on the recipe's data, such as test/top1.

    Args:
        recipe: its data, test-time augmentation, precision and devices are used.
        recipe_name: for messages.
        checkpoint: what `layerzoo.load` takes.
        split: "val" or "test".
    Raises:
        ValueError: if the checkpoint's classes are not the data's.
    """
    task, data = _restore(recipe, recipe_name, checkpoint)
    trainer = _trainer(recipe, [], [])
    measure = trainer.validate if split == "val" else trainer.test
    return measure(task, datamodule=data, verbose=False)[0]


def predict(recipe: Recipe, *, recipe_name: str, checkpoint: str | Path) -> tuple[list[str], Tensor]:
    """Class names, and their probabilities (N, K) for the test set in its order, on one device.

    Args:
        recipe: its data, test-time augmentation and precision are used.
        recipe_name: for messages.
        checkpoint: what `layerzoo.load` takes.
    Raises:
        ValueError: if the checkpoint's classes are not the data's.
    """
    task, data = _restore(recipe, recipe_name, checkpoint)
    single = dataclasses.replace(recipe, trainer=dataclasses.replace(recipe.trainer, devices=1, num_nodes=1, strategy="auto"))
    return data.classes, torch.cat(_trainer(single, [], []).predict(task, datamodule=data))


def _data(recipe: Recipe) -> ImageData:
    """The recipe's data, opened; a batch is what one backward pass takes."""
    parts = recipe.trainer.accumulate_grad_batches
    if recipe.data.batch_size % parts:
        raise bad_value(
            "data.batch_size", got=recipe.data.batch_size, expected=f"a multiple of trainer.accumulate_grad_batches = {parts}",
            do=f"Use {recipe.data.batch_size // parts * parts or parts}.")
    data = ImageData(dataclasses.replace(recipe.data, batch_size=recipe.data.batch_size // parts), recipe.seed)
    data.setup()
    return data


def _restore(recipe: Recipe, recipe_name: str, checkpoint: str | Path) -> tuple[Classify, ImageData]:
    """A task for the checkpoint's model, and the recipe's data normalised as that model was trained."""
    model, data = load(checkpoint), _data(recipe)
    known = model.manifest["classes"]
    if known != data.classes:
        raise bad_value(
            "--checkpoint", got=f"{checkpoint} for {len(known)} classes ({', '.join(known[:3])} ...)",
            expected=f"the {len(data.classes)} classes of {recipe_name} ({', '.join(data.classes[:3])} ...)", do="Choose another checkpoint or recipe.")
    data.mean, data.std = model.manifest["mean"], model.manifest["std"]
    task = dataclasses.replace(recipe.task, ema_decay=0.0)
    return Classify(model, task, classes=data.classes, max_epochs=recipe.trainer.max_epochs), data


def find_device(config: TrainerConfig) -> torch.device:
    """The kind of device that training takes on this machine."""
    found = torch.accelerator.current_accelerator(check_available=True) if config.accelerator != "cpu" else None
    return found or torch.device("cpu")


def find_precision(config: TrainerConfig) -> str:
    """The precision as Lightning names it, where it is "auto" the best of the device."""
    if config.precision != "auto":
        return config.precision
    return "bf16-mixed" if multiplies_bfloat16(find_device(config)) else "32-true"


def _trainer(recipe: Recipe, loggers: list[Logger], callbacks: list[pl.Callback]) -> pl.Trainer:
    given = {k: v for k, v in vars(recipe.trainer).items() if k not in ("callbacks", "options")}
    given["precision"] = find_precision(recipe.trainer)
    quiet = {"num_sanity_val_steps": 0, "enable_model_summary": False}
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # importing them sets INFO: devices, advertisements
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")  # as it should be in a resumed run
    return pl.Trainer(
        **given, **(quiet | recipe.trainer.options), logger=loggers, callbacks=callbacks, enable_checkpointing=bool(callbacks),
        use_distributed_sampler=False, enable_progress_bar=False, plugins=[SafeCheckpointIO()])


def _callbacks(recipe: Recipe) -> list[pl.Callback]:
    """The recipe's own."""
    made = []
    for entry in recipe.trainer.callbacks:
        module, _, name = entry["class_path"].rpartition(".")
        made.append(getattr(importlib.import_module(module), name)(**entry.get("init_args", {})))
    return made


@contextmanager
def _loggers(recipe: Recipe, recipe_name: str, folder: Path) -> Iterator[list[Logger]]:
    """On rank 0 metrics.jsonl and W&B, whose run ends with the block, as failed if the block fails."""
    wandb, code = None, 1
    if rank_zero_only.rank == 0:
        wandb = create_wandb(recipe.logging, folder, name=f"{recipe_name}-s{recipe.seed}", group=recipe_name)
    try:
        yield [MetricsFile(folder), *([wandb] if wandb else [])]
        code = 0
    finally:
        if wandb:
            wandb.finish(code)


def _describe(recipe: Recipe, data: ImageData, price: Cost, trainer: pl.Trainer) -> None:
    counts = ", ".join(f"{count} {split}" for split, count in data.num_samples.items())
    parts = trainer.world_size * recipe.trainer.accumulate_grad_batches
    _say(f"data   {recipe.data.source}: {len(data.classes)} classes, {counts}")
    _say(f"model  {recipe.model.name}: {price}")
    accumulated = f" x {recipe.trainer.accumulate_grad_batches} accumulated" if recipe.trainer.accumulate_grad_batches > 1 else ""
    share = f"{trainer.world_size} x {trainer.strategy.root_device.type} x {recipe.data.batch_size // parts}{accumulated}"
    _say(f"batch  {recipe.data.batch_size} = {share}, {trainer.precision}")


@rank_zero_only
def _say(text: str) -> None:
    print(text, flush=True)
