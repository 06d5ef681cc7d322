"""Where the heads of quadratic attention look, epoch by epoch."""

from __future__ import annotations

import json

import pytorch_lightning as pl

from layerzoo.positions.quadratic import Quadratic
from layerzoo.train.loggers import MetricsFile

FILE = "centers.jsonl"


class HeadCenters(pl.Callback):
    """Appends to centers.jsonl in the run folder, after each epoch, the centres (h, 2) of every quadratic encoding, by the name of its layer.

    `layerzoo plot attention` draws their paths. A resumed run may repeat an epoch; the last row of an epoch counts.
    """

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if trainer.current_epoch == 0:
            self._write(trainer, task, 0)

    def on_train_epoch_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self._write(trainer, task, trainer.current_epoch + 1)

    def _write(self, trainer: pl.Trainer, task: pl.LightningModule, epoch: int) -> None:
        centers = {n: m.centers.detach().cpu().tolist() for n, m in task.model.named_modules() if isinstance(m, Quadratic)}
        for logger in trainer.loggers if trainer.is_global_zero else ():
            if isinstance(logger, MetricsFile):
                with logger.path.with_name(FILE).open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"epoch": epoch, "centers": centers}) + "\n")
