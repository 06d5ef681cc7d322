"""Where a loss that is not finite comes from."""

from __future__ import annotations

from collections.abc import Iterable

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from layerzoo.tasks.ema import local
from layerzoo.train.sharded import gather

REMEDY = "Lower task.optimizer.lr, lengthen the warm-up, or set trainer.gradient_clip_val."
_SHOWN = 3  # samples named


def explain(task: pl.LightningModule, batch: tuple[Tensor, Tensor], batch_idx: int, names: list[str]) -> str:
    """The first of weights, images and layers in which values are not finite, and for which samples: the batch is run again. A call
    of every rank.

    Args:
        task: with the weights from before the step.
        batch: (x, y), x with B samples.
        batch_idx: in the epoch, for the same dropout.
        names: of the samples.
    """
    gather(task.model)  # a rank that knows why leaves the others, which then could gather nothing
    spoiled = first_spoiled(task)
    before = f"{spoiled} is not finite, since the step before"
    if spoiled in dict(task.named_parameters()):
        return before
    x, _ = batch
    if rows := _bad_rows(x):
        return f"images are not finite: {_some(names, rows)}"
    found: list[tuple[str, list[int]]] = []

    def hook(name: str) -> object:
        def look(module: nn.Module, inputs: tuple, output: object) -> None:
            rows = _bad_rows(output) if isinstance(output, Tensor) else []
            if rows:
                found.append((name, rows))
        return look

    parts = [part.register_forward_hook(hook(name)) for name, part in task.model.named_modules() if name]
    try:
        task.reseed(batch_idx)
        with torch.no_grad():
            task.training_step(batch)
    finally:
        for part in parts:
            part.remove()
    if not found and spoiled:  # a buffer, which this step may have spoiled by what was found first
        return before
    if not found:
        return f"every layer is finite, the loss alone is not, of {_some(names, range(len(names)))}"
    name, rows = found[0]  # the innermost of those that end with it
    return f"{name} ({type(task.model.get_submodule(name)).__name__}) is the first layer whose output is not, for {_some(names, rows)}"


def first_spoiled(module: nn.Module) -> str | None:
    """The first parameter or buffer that is not finite."""
    held = [*module.named_parameters(), *module.named_buffers()]
    return next((name for name, tensor in held if tensor.is_floating_point() and not local(tensor).isfinite().all()), None)


def _bad_rows(x: Tensor) -> list[int]:
    if not x.is_floating_point() or x.ndim == 0:
        return []
    return (~x.isfinite().flatten(1).all(1) if x.ndim > 1 else ~x.isfinite()).nonzero()[:, 0].tolist()


def _some(names: list[str], rows: Iterable[int]) -> str:
    chosen = [names[row] if row < len(names) else str(row) for row in rows]  # a layer may fold windows into the batch
    return ", ".join(chosen[:_SHOWN]) + (f" and {len(chosen) - _SHOWN} more" if len(chosen) > _SHOWN else "")
