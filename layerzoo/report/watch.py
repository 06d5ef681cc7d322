"""What each step of a training begins with, as hashes: weights, moments of the optimiser, randomness, samples."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

PARTS = ("weights", "moments", "randomness", "samples", "end")


class Watch(pl.Callback):
    """Writes what each step begins with to a file, a line a step, and at last what the weights are.

    Args:
        out: the file.
        stop: the step after which the process dies; 0 for none.
    """

    def __init__(self, out: str, stop: int = 0):
        self.out, self.stop, self.steps = out, stop, 0

    def follow(self, model: nn.Module, optimizer: Callable[[], torch.optim.Optimizer]) -> None:
        """From here on, each forward pass in training is a step."""
        def note(model: nn.Module, given: tuple[Tensor]) -> None:
            if model.training:
                moments = [value for state in optimizer().state.values() for _, value in sorted(state.items()) if isinstance(value, Tensor)]
                found = model.state_dict().values(), moments, [torch.get_rng_state()], given
                self._write(dict(zip(PARTS, map(_digest, found))))

        model.register_forward_pre_hook(note)

    def step(self, number: int) -> None:
        """Dies here, if step `number` was the last to be done."""
        if number == self.stop > 0:
            os._exit(0)

    def end(self, model: nn.Module) -> None:
        """The training is done."""
        self._write({"end": _digest(model.state_dict().values())})

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self.follow(task.model, lambda: trainer.optimizers[0])

    def on_train_batch_start(self, trainer: pl.Trainer, task: pl.LightningModule, batch: object, batch_idx: int) -> None:
        self.step(trainer.global_step)

    def on_train_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self.end(task.model)

    def _write(self, line: dict) -> None:
        with open(self.out, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


class Present(Watch):
    """The watch that this process was `given`, under a name that is the same in a recipe that is begun again."""

    given: tuple[str, int]

    def __init__(self):
        super().__init__(*self.given)


def _digest(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()
