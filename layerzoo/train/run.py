"""Run a recipe: fit, evaluate, predict."""

from __future__ import annotations

import dataclasses
import errno
import importlib
import logging
import math
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import Strategy, StrategyRegistry
from pytorch_lightning.trainer.connectors.signal_connector import _SignalConnector
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from layerzoo.checkpoint import save_checkpoint, verify_checkpoint
from layerzoo.config import Recipe, TrainerConfig
from layerzoo.data.datamodule import ImageData
from layerzoo.errors import RankLost, bad_value
from layerzoo.hub import load
from layerzoo.models import create_model
from layerzoo.recipe import resolved, sha256
from layerzoo.report.cost import Cost, cost
from layerzoo.tasks.classify import Classify
from layerzoo.tasks.optim import multiplies_bfloat16
from layerzoo.train.callbacks import PredictionReport, Progress
from layerzoo.train.folder import checkpoints, locked, open_folder, tell, versions
from layerzoo.train.keeping import Keeper
from layerzoo.train.loggers import MetricsFile, PatientWandbLogger, create_wandb
from layerzoo.train.saving import FolderCheckpointIO, newest_whole
from layerzoo.train.sharded import Sharded
from layerzoo.train.stopping import Signals

WHITENING_IMAGES = 5000
_PEER = re.compile("closed by peer|reset by peer|Timed out waiting|Broken pipe")  # how gloo says it


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


def fit(recipe: Recipe, *, recipe_name: str, resume: str = "auto") -> RunResult:
    """Train, test the final (averaged) weights, write the checkpoint.

    Args:
        recipe: what to run.
        recipe_name: names the run folder and the W&B group.
        resume: "auto" = go on with the newest run of this recipe and seed, whose result is returned if it is done, and begin
            one if there is none; "never" = begin one; or the path of a run folder.
    Raises:
        ValueError: for options that do not go together, a run to resume that is another recipe's, or one that runs now.
        FloatingPointError: if the loss or the weights cease to be finite, naming the step.
        RankLost: if another process of the run is gone or does not answer in time.
        SystemExit: with 143 or 130 after SIGTERM, SIGUSR1 or SIGINT, once what can be resumed is saved.
    """
    folder, resumed = open_folder(recipe, recipe_name, resume)
    published = folder / "checkpoint"
    _say(f"run    {folder}" + (f", resumed from {resumed.name}" if resumed else ""))
    if published.exists() and resume != "never":
        _say("       is done already; --fresh begins another")
        return RunResult(folder, verify_checkpoint(published)["metrics"], published)
    with Signals() as signals, _watched(folder):
        pl.seed_everything(recipe.seed, workers=True, verbose=False)
        with closing(_data(recipe)) as data:
            return _fit(recipe, recipe_name, data, folder, resumed, signals)


def _fit(recipe: Recipe, recipe_name: str, data: ImageData, folder: Path, resumed: Path | None, signals: Signals) -> RunResult:
    published = folder / "checkpoint"
    model = create_model(**resolved(recipe)["model"], num_classes=len(data.classes), img_size=recipe.data.img_size, in_chans=data.in_chans)
    if hasattr(model.stem, "init_from_data"):  # asked of the stem, since thousands of images are read for it
        model.init_from_data(data.training_images(WHITENING_IMAGES))
    steps = math.ceil(len(data.train_dataloader()) / recipe.trainer.accumulate_grad_batches)
    config = dataclasses.replace(recipe.task, optimizer=dataclasses.replace(recipe.task.optimizer, lr=peak_rate(recipe)))
    task = Classify(model, config, classes=data.classes, steps_per_epoch=steps, max_epochs=recipe.trainer.max_epochs, seed=recipe.seed)
    price = cost(model, (1, data.in_chans, *model.img_size))
    keeper = Keeper(checkpoints(folder), signals, recipe.trainer.save_minutes, recipe.trainer.rank_timeout)
    about = {"recipe_name": recipe_name, "recipe_sha256": sha256(recipe), "seed": recipe.seed, "versions": versions()}
    with _loggers(recipe, recipe_name, folder) as loggers:
        trainer = _trainer(recipe, loggers, [Progress(recipe.trainer.log_every_n_steps), keeper, *_callbacks(recipe)], about)
        _describe(recipe, data, price, trainer, steps)
        for logger in loggers:
            logger.log_hyperparams({
                "recipe": resolved(recipe), "recipe_sha256": sha256(recipe), "cost": dataclasses.asdict(price), "versions": versions(),
                "precision": trainer.precision})
        with _together(trainer):
            trainer.fit(task, datamodule=data, ckpt_path=resumed)
            if recipe.trainer.strategy == "fsdp":
                trainer.strategy.make_whole()
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


def peak_rate(recipe: Recipe) -> float:
    """The peak learning rate at the recipe's batch, which is that of one step over all devices and accumulated parts."""
    optimizer = recipe.task.optimizer
    ratio = recipe.data.batch_size / optimizer.lr_batch_size
    return optimizer.lr * {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[optimizer.lr_scaling]


def find_device(config: TrainerConfig) -> torch.device:
    """The kind of device that training takes on this machine."""
    found = torch.accelerator.current_accelerator(check_available=True) if config.accelerator != "cpu" else None
    return found or torch.device("cpu")


def find_precision(config: TrainerConfig) -> str:
    """The precision as Lightning names it, where it is "auto" the best of the device."""
    if config.precision != "auto":
        return config.precision
    return "bf16-mixed" if multiplies_bfloat16(find_device(config)) else "32-true"


@contextmanager
def _watched(folder: Path) -> Iterator[None]:
    """On rank 0 a run alone in its folder, whose status.json says how it stands."""
    if rank_zero_only.rank:
        yield
        return
    with locked(folder):
        tell(folder, state="running")
        try:
            yield
        except BaseException as error:
            if not folder.is_dir():
                raise OSError(errno.ESTALE, "the run folder is gone", str(folder)) from error
            left = newest_whole(checkpoints(folder))
            stopped = isinstance(error, SystemExit) and error.code in (130, 143)
            with suppress(OSError):  # a disk that is full or gone has its own message, which is on its way
                tell(
                    folder, state="stopped" if stopped else "failed", reason=f"{type(error).__name__}: {error}",
                    checkpoint=left.name if left else None)
            if stopped:
                print(f"stopped; `layerzoo fit` again goes on from {left.name if left else 'the start'}", flush=True)
            raise
        tell(folder, state="done")


@contextmanager
def _together(trainer: pl.Trainer) -> Iterator[None]:
    """What gloo and NCCL say where another rank is gone or stuck, in a sentence."""
    try:
        yield
    except RuntimeError as error:
        said = str(error)
        if trainer.world_size == 1 or not (isinstance(error, dist.DistError) or _PEER.search(said)):
            raise
        raise RankLost(
            f"rank {trainer.global_rank}: another rank ended, or did not answer in time ({said.splitlines()[0][:120]}). "
            "Its own message says why; the same command goes on from what is saved.") from error


class _NoHandlers(_SignalConnector):
    """Lightning's handlers speak to other ranks, save and requeue in the middle of a step; ours set a flag."""

    def register_signal_handlers(self) -> None:
        pass


def _trainer(recipe: Recipe, loggers: list[Logger], callbacks: list[pl.Callback], about: dict | None = None) -> pl.Trainer:
    given = {k: v for k, v in vars(recipe.trainer).items() if k not in ("callbacks", "options", "save_minutes", "rank_timeout")}
    given["strategy"] = _patient(recipe.trainer)
    given["precision"] = find_precision(recipe.trainer)
    quiet = {"num_sanity_val_steps": 0, "enable_model_summary": False}
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # importing them sets INFO: devices, advertisements
    trainer = pl.Trainer(
        **given, **(quiet | recipe.trainer.options), logger=loggers, callbacks=callbacks, enable_checkpointing=bool(callbacks),
        use_distributed_sampler=False, enable_progress_bar=False, plugins=[FolderCheckpointIO(about or {})])
    trainer._signal_connector = _NoHandlers(trainer)
    return trainer


def _patient(config: TrainerConfig) -> str | Strategy:
    """The strategy, which waits for other ranks as long as the recipe says, where Lightning's waits half an hour; fsdp is FSDP2."""
    if config.strategy == "fsdp":
        return Sharded(timeout=timedelta(seconds=config.rank_timeout))
    if not config.strategy.startswith("ddp") or config.strategy not in StrategyRegistry:
        return config.strategy
    known = StrategyRegistry[config.strategy]
    return known["strategy"](**known["init_params"], timeout=timedelta(seconds=config.rank_timeout))


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


def _describe(recipe: Recipe, data: ImageData, price: Cost, trainer: pl.Trainer, steps: int) -> None:
    counts = ", ".join(f"{count} {split}" for split, count in data.num_samples.items())
    parts = trainer.world_size * recipe.trainer.accumulate_grad_batches
    _say(f"data   {recipe.data.source}: {len(data.classes)} classes, {counts}")
    _say(f"model  {recipe.model.name}: {price}")
    accumulated = f" x {recipe.trainer.accumulate_grad_batches} accumulated" if recipe.trainer.accumulate_grad_batches > 1 else ""
    share = f"{trainer.world_size} x {trainer.strategy.root_device.type} x {recipe.data.batch_size // parts}{accumulated}"
    optimizer = recipe.task.optimizer
    rule = f" = {optimizer.lr:g} per {optimizer.lr_batch_size}, {optimizer.lr_scaling}" if optimizer.lr_scaling != "none" else ""
    _say(f"batch  {recipe.data.batch_size} = {share}, {trainer.precision}; {steps} steps an epoch; learning rate {peak_rate(recipe):.4g}{rule}")


@rank_zero_only
def _say(text: str) -> None:
    print(text, flush=True)
