"""What a run watches: training metrics, losses that are not finite, progress, test predictions."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from layerzoo.tasks.ema import local
from layerzoo.train.nonfinite import REMEDY, explain, first_spoiled


@dataclass
class Epoch:
    """What was read in an epoch."""

    losses: list[float] = field(default_factory=list)
    images: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"train/loss {sum(self.losses) / len(self.losses):.4f}  {self.images / self.seconds:.0f} images/s"


class StepMeter(pl.Callback):
    """Gathers the loss of each step on the device, reads it every n steps and at the end of an epoch, and logs it.

    Logged: train/loss and what layers report, as train/<name> (means over the steps since the last reading, and over ranks),
    train/lr, train/images_per_s (all ranks, without evaluation). A loss that is not finite stops the run: on one CPU, where looking
    costs nothing, or if every step is read, before it spoils the weights, naming step, samples and the first layer that is not
    finite; else at the reading, naming step and samples. No checkpoint is saved after such a loss or with such weights.

    Args:
        every_n_steps: optimiser steps between readings.
    Raises:
        FloatingPointError: on a loss or weights that are not finite, on every rank alike.
    """

    def __init__(self, every_n_steps: int):
        self.every_n_steps = every_n_steps
        self.losses, self.filled = torch.zeros(0), 0
        self.reported: dict[str, Tensor] = {}
        self.epoch = Epoch()

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        kept, self.losses = self.losses[: self.filled], torch.zeros(self.every_n_steps * trainer.accumulate_grad_batches, device=task.device)
        self.slots = self.losses.unbind()
        self.filled = min(len(kept), len(self.slots) - 1)  # of a resumed run, which may read more often than before
        self.losses[: self.filled] = kept[: self.filled]
        self.reported = {name: total.to(task.device) for name, total in self.reported.items()}
        self.images, self.start = 0, time.perf_counter()
        self.prompt = self.every_n_steps == 1 or (trainer.world_size == 1 and task.device.type == "cpu")

    def on_train_batch_start(self, trainer: pl.Trainer, task: pl.LightningModule, batch: tuple, batch_idx: int) -> None:
        self.batch, self.batch_idx = batch, batch_idx

    def on_before_backward(self, trainer: pl.Trainer, task: pl.LightningModule, loss: Tensor) -> None:
        if self.prompt and not trainer.strategy.reduce_boolean_decision(math.isfinite(loss.item())):
            names = _names(trainer, self.batch_idx) or [f"sample {i} of the batch" for i in range(len(self.batch[1]))]
            why = explain(task, self.batch, self.batch_idx, names)
            raise FloatingPointError(f"training loss at step {trainer.global_step + 1} is {loss.item()}: {why}. {REMEDY}")

    def on_train_epoch_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self.epoch = Epoch()
        self._restart(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, task: pl.LightningModule, outputs: dict, batch: tuple, batch_idx: int) -> None:
        self.slots[self.filled].copy_(outputs["loss"])
        for name in outputs.keys() - {"loss"}:
            self.reported[name] = self.reported.get(name, 0) + outputs[name]
        self.filled += 1
        self.images += len(batch[1])
        if self.filled == len(self.slots):
            self._read(trainer)

    def on_validation_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self.paused = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self.start += time.perf_counter() - self.paused

    def on_train_epoch_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if self.filled:
            self._read(trainer)

    def on_save_checkpoint(self, trainer: pl.Trainer, task: pl.LightningModule, checkpoint: dict) -> None:
        self._check(trainer, self._losses(trainer))
        weights = [local(t) for t in (*task.parameters(), *task.buffers()) if t.is_floating_point()]
        finite = bool(torch.stack([t.isfinite().all() for t in weights]).all())
        if not trainer.strategy.reduce_boolean_decision(finite):
            spoiled = first_spoiled(task) or "those of another rank"
            raise FloatingPointError(f"weights after step {trainer.global_step} are not finite: {spoiled}. No checkpoint was saved. {REMEDY}")
        reported = {name: trainer.strategy.reduce(total.clone(), reduce_op="mean") for name, total in sorted(self.reported.items())}
        mean = trainer.strategy.reduce(self.losses[: self.filled].clone(), reduce_op="mean")
        checkpoint["meter"] = {"losses": mean, "reported": reported, "first_step": self.first_step, "epoch": vars(self.epoch).copy()}

    def on_load_checkpoint(self, trainer: pl.Trainer, task: pl.LightningModule, checkpoint: dict) -> None:
        kept = checkpoint["meter"]
        self.losses, self.reported, self.first_step = kept["losses"], kept["reported"], kept["first_step"]
        self.filled, self.epoch = len(self.losses), Epoch(**kept["epoch"])

    def _read(self, trainer: pl.Trainer) -> None:
        losses = self._losses(trainer)
        self._check(trainer, losses)
        images, seconds = self.images * trainer.world_size, time.perf_counter() - self.start
        metrics = {
            "train/loss": sum(losses) / len(losses), "train/lr": trainer.optimizers[0].param_groups[0]["lr"],
            "train/images_per_s": images / seconds, "epoch": trainer.current_epoch,
            **{f"train/{name}": trainer.strategy.reduce(total / self.filled, reduce_op="mean").item() for name, total in sorted(self.reported.items())}}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)
        self.epoch = Epoch(self.epoch.losses + losses, self.epoch.images + images, self.epoch.seconds + seconds)
        self._restart(trainer)

    def _restart(self, trainer: pl.Trainer) -> None:
        self.filled, self.images, self.reported = 0, 0, {}
        self.first_step, self.start = trainer.global_step, time.perf_counter()

    def _losses(self, trainer: pl.Trainer) -> list[float]:
        """Of the batches since the last reading, mean over ranks: the one host read."""
        losses = self.losses[: self.filled] * trainer.accumulate_grad_batches
        return trainer.strategy.reduce(losses, reduce_op="mean").tolist()

    def _check(self, trainer: pl.Trainer, losses: list[float]) -> None:
        for i, loss in enumerate(losses):
            if not math.isfinite(loss):
                step = self.first_step + i // trainer.accumulate_grad_batches + 1
                names = _names(trainer, self.batch_idx + 1 - len(losses) + i)
                samples = f" (samples of rank {trainer.global_rank}: {', '.join(names[:3])} ...)" if names else ""
                do = "Resumed with --trainer.log_every_n_steps 1, the run names the layer."
                raise FloatingPointError(f"training loss at step {step} is {loss}{samples}. {REMEDY} {do}")


def _names(trainer: pl.Trainer, batch_idx: int) -> list[str]:
    """Of this rank's samples in a batch of the epoch, where the loader knows them."""
    names = getattr(trainer.train_dataloader, "names", None)
    return names(trainer.current_epoch, batch_idx) if names else []


class Progress(StepMeter):
    """A StepMeter that prints a line per epoch, below it a bar of steps where standard error is a terminal.

    One callback with its base, since Lightning spends 20 us a step on each. The bar reads no tensor.

    Args:
        every_n_steps: optimiser steps between readings.
    """

    def __init__(self, every_n_steps: int):
        super().__init__(every_n_steps)
        self.bar, self.validated = None, -1

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        super().on_train_start(trainer, task)
        self.began = time.perf_counter()
        if trainer.is_global_zero and sys.stderr.isatty():
            from tqdm import tqdm

            steps = trainer.num_training_batches
            self.bar = tqdm(total=trainer.max_epochs * steps, initial=trainer.current_epoch * steps, unit="step", leave=False)

    def on_train_batch_end(self, trainer: pl.Trainer, task: pl.LightningModule, outputs: dict, batch: tuple, batch_idx: int) -> None:
        super().on_train_batch_end(trainer, task, outputs, batch, batch_idx)
        if self.bar is not None:
            self.bar.update()

    def on_validation_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        super().on_validation_end(trainer, task)
        self.validated = trainer.current_epoch

    def on_train_epoch_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        super().on_train_epoch_end(trainer, task)
        seconds, self.began = time.perf_counter() - self.began, time.perf_counter()
        measured = trainer.callback_metrics if self.validated == trainer.current_epoch else {}  # Lightning keeps those of earlier epochs
        shown = "".join(f"  {name} {value:.4f}" for name, value in measured.items() if name.startswith("val/"))
        if self.bar is not None:
            self.bar.clear()
        if trainer.is_global_zero:
            print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {self.epoch}{shown}  {seconds:.1f} s", flush=True)

    def on_train_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self.close()

    def on_exception(self, trainer: pl.Trainer, task: pl.LightningModule, exception: BaseException) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar off the screen."""
        if self.bar is not None:
            self.bar.close()


class PredictionReport(pl.Callback):
    """Draws the confusion matrix and a grid of wrong predictions of the test set, for the run folder and W&B.

    Args:
        classes: K class names.
        mean: of each channel in [0, 1], with which images were normalised.
        std: likewise.
        folder: where confusion_matrix.png and wrong_predictions.png go.
        count: images in the grid.
    """

    def __init__(self, classes: list[str], mean: list[float], std: list[float], folder: Path, count: int):
        self.classes, self.mean, self.std, self.folder, self.count = classes, mean, std, folder, count

    def on_test_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self.confusion = MulticlassConfusionMatrix(len(self.classes), validate_args=False).to(task.device)
        self.wrong: list[tuple[Tensor, int, int]] = []

    def on_test_batch_end(self, trainer: pl.Trainer, task: pl.LightningModule, outputs: Tensor, batch: tuple, batch_idx: int) -> None:
        x, y = batch
        guess = outputs.argmax(1)
        self.confusion.update(guess, y)
        if len(self.wrong) < self.count:
            places = (guess != y).nonzero()[: self.count - len(self.wrong), 0]
            self.wrong += zip(x[places].float().cpu(), y[places].tolist(), guess[places].tolist())

    def on_test_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        matrix = self.confusion.compute().cpu()
        if trainer.is_global_zero:
            paths = {name: self.folder / f"{name}.png" for name in ("confusion_matrix", "wrong_predictions")}
            draw_confusion(matrix, self.classes, paths["confusion_matrix"])
            draw_wrong(self.pictures(), paths["wrong_predictions"])
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    for name, path in paths.items():
                        logger.log_image(f"test/{name}", [str(path)], step=trainer.global_step)

    def pictures(self) -> list[tuple[Tensor, str]]:
        """The wrong predictions, as images (C, H, W) in [0, 1] with captions."""
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.mean, self.std))
        return [((x * std + mean).clamp(0, 1), f"{self.classes[y]}\ntaken for {self.classes[guess]}") for x, y, guess in self.wrong]


def draw_confusion(matrix: Tensor, classes: list[str], path: Path) -> None:
    """Counts (K, K), true classes down and predicted across, as a picture; each row is shaded by its shares."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 7), layout="constrained")
    axes = figure.subplots()
    axes.imshow(matrix / matrix.sum(1, keepdim=True).clamp(min=1), vmin=0, vmax=1, cmap="Blues")
    axes.set(xlabel="predicted", ylabel="true")
    if len(classes) <= 50:  # more names would not be legible
        axes.set_xticks(range(len(classes)), classes, rotation=90)
        axes.set_yticks(range(len(classes)), classes)
    if len(classes) <= 12:
        for i, row in enumerate(matrix.tolist()):
            for j, count in enumerate(row):
                axes.text(j, i, count, ha="center", va="center", fontsize=8)
    figure.savefig(path)


def draw_wrong(pictures: list[tuple[Tensor, str]], path: Path) -> None:
    """Images (C, H, W) in [0, 1] with their captions, eight to a row."""
    from matplotlib.figure import Figure

    rows = max(1, math.ceil(len(pictures) / 8))
    figure = Figure(figsize=(12, 1.9 * rows), layout="constrained")
    for axes in figure.subplots(rows, 8).flat:
        axes.axis("off")
    for axes, (image, caption) in zip(figure.axes, pictures):
        axes.imshow(image[0] if len(image) == 1 else image.permute(1, 2, 0), cmap="gray", vmin=0, vmax=1)
        axes.set_title(caption, fontsize=7)
    figure.savefig(path)
