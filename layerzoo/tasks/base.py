"""What every task does alike: optimiser, schedule, averaged weights, layout, evaluation under DDP."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from layerzoo.config import TaskConfig
from layerzoo.errors import bad_value
from layerzoo.tasks.ema import WeightAverage
from layerzoo.tasks.optim import Schedule, create_optimizer


class Task(pl.LightningModule):
    """A model and how it is optimised. Subclasses write the steps.

    Args:
        model: the module to train.
        config: optimiser, schedule, averaging, memory format, compilation.
        steps_per_epoch: optimiser steps in an epoch.
        max_epochs: length of training.
        seed: of dropout and drop path.
    Raises:
        ValueError: for an ema_decay outside [0, 1) or a warm-up longer than training; at the start of training, for an
            unknown optimiser or option of it.
    """

    def __init__(self, model: nn.Module, config: TaskConfig, *, steps_per_epoch: int = 1, max_epochs: int = 1, seed: int = 0):
        super().__init__()
        check_share("task.ema_decay", config.ema_decay)
        self.config, self.seed = config, seed
        self.model = model.to(memory_format=torch.channels_last) if config.channels_last else model
        self.average = WeightAverage(self.model, config.ema_decay) if config.ema_decay else None
        self.schedule = Schedule(config.schedule, config.optimizer.lr, steps_per_epoch, max_epochs)
        if config.compile:
            self.model.compile()

    @property
    def final_model(self) -> nn.Module:
        """The weights that are evaluated and saved: averaged ones where there are any."""
        return self.model if self.average is None else self.average.model

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return create_optimizer(self.model, self.config.optimizer)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer, optimizer_closure: Callable | None = None) -> None:
        """One step at the schedule's rate, then the average."""
        step = self.global_step
        rate = self.schedule(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step(closure=optimizer_closure)
        if self.average is not None:
            self.average.update(step + 1)

    def layout(self, x: Tensor) -> Tensor:
        """Images in the model's memory format."""
        return x.contiguous(memory_format=torch.channels_last) if self.config.channels_last else x

    def on_fit_start(self) -> None:
        if self.average is not None:
            self.average.follow(self.model)

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        self.reseed(batch_idx)

    def reseed(self, batch_idx: int) -> None:
        """Dropout and drop path of this batch are drawn from (seed, epoch, batch, rank) alone, so that a resumed run draws what the unbroken one would."""
        key = f"{self.seed} {self.current_epoch} {batch_idx} {self.global_rank}".encode()
        seed = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) >> 1
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would take a stack trace where there is no GPU
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)

    def __setattr__(self, name: str, value: object) -> None:
        # Lightning sets a text 44 times a step; a plain attribute needs none of nn.Module's bookkeeping
        if name in self.__dict__ and (value is None or type(value) is str):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)


def check_share(what: str, value: float) -> None:
    """Refuse a value outside [0, 1)."""
    if not 0 <= value < 1:
        raise bad_value(what, got=value, expected="a number in [0, 1)", do="Use 0 to turn it off.")
