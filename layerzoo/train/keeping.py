"""Saves what a run resumes from, and stops where it can go on to the same bits."""

from __future__ import annotations

import time
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from layerzoo.checkpoint import vanish
from layerzoo.train.saving import place, saved
from layerzoo.train.stopping import SAVE, Agreement, Signals

KEPT = 2  # training checkpoints
_SHARE = 0.01  # of the time that saving may take at the end of epochs


class Keeper(Checkpoint):
    """Saves at the end of an epoch, within it every so many minutes, and when the run is asked to stop; keeps the newest two.

    Ends of epochs are passed over while saving would take more than a hundredth of the time, but not the last. A stop is at the
    same step on every rank, between two optimiser steps or in validation, which a resumed run begins again.

    Args:
        folder: of the checkpoints.
        signals: that have been entered.
        minutes: between saves within an epoch.
        seconds: to wait for other ranks.
    Raises:
        SystemExit: with the code of the signal, once all is saved.
    """

    def __init__(self, folder: Path, signals: Signals, minutes: float, seconds: float):
        self.folder, self.signals, self.minutes, self.seconds = folder, signals, minutes, seconds
        self.agreed, self.took, self.last = 0, 0.0, time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self.agree = Agreement(trainer.world_size, self.seconds)
        self.signals.deferred = True

    def on_train_batch_end(self, trainer: pl.Trainer, task: pl.LightningModule, outputs: dict, batch: tuple, batch_idx: int) -> None:
        due = trainer.is_global_zero and time.monotonic() - self.last > 60 * self.minutes
        self._hear(SAVE if due else 0)
        if self.agreed and not trainer.is_last_batch and not trainer.fit_loop._should_accumulate():
            self._save(trainer)

    def on_validation_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self.common = self.agree.least(sum(trainer.num_val_batches))  # a rank may have one batch more than another
        if self.agreed > SAVE:
            self._save(trainer)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, task: pl.LightningModule, outputs: object, batch: tuple, batch_idx: int, dataloader_idx: int = 0,
    ) -> None:
        if batch_idx < self.common:
            self._hear(0)
            if self.agreed > SAVE:
                self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        since = time.monotonic() - self.last
        last = trainer.current_epoch + 1 == trainer.max_epochs or trainer.global_step == trainer.max_steps or trainer.should_stop
        if trainer.strategy.broadcast(bool(self.agreed or last or self.took <= _SHARE * since)):
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self._end()

    def on_exception(self, trainer: pl.Trainer, task: pl.LightningModule, exception: BaseException) -> None:
        self.signals.deferred = False

    def on_save_checkpoint(self, trainer: pl.Trainer, task: pl.LightningModule, checkpoint: dict) -> None:
        checkpoint["world_size"] = trainer.world_size
        if trainer.validating:  # as at its first batch: what it has measured so far is not saved
            zero, one = {"ready": 0, "completed": 0, "started": 0, "processed": 0}, {"ready": 1, "completed": 0, "started": 1, "processed": 0}
            checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"] = {"total": one, "current": zero, "is_last_batch": False}

    def on_load_checkpoint(self, trainer: pl.Trainer, task: pl.LightningModule, checkpoint: dict) -> None:
        before = checkpoint["world_size"]
        if before != trainer.world_size and trainer.is_global_zero:
            print(f"devices {trainer.world_size}, where the run began with {before}: its result is not that of {before} to the bit", flush=True)

    def _hear(self, value: int) -> None:
        self.agreed = max(self.agreed, self.agree(max(value, self.signals.code)))

    def _save(self, trainer: pl.Trainer) -> None:
        began = time.monotonic()
        trainer.save_checkpoint(place(self.folder, trainer.global_step))
        if trainer.is_global_zero:
            for old in saved(self.folder)[:-KEPT]:
                vanish(old)
        self.last = time.monotonic()
        self.took = self.last - began
        agreed, self.agreed = self.agreed, 0
        if agreed > SAVE:
            self._end()
            raise SystemExit(agreed)

    def _end(self) -> None:
        self.agree.finish()
        self.signals.deferred = False
