"""What layers tell beside their output: auxiliary losses, which are trained, and statistics, which are only logged."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

_OPEN: list[Auxiliary] = []  # a plain list, which torch.compile follows


class Auxiliary:
    """Losses and statistics of one forward pass, by name; layers that report the same name are averaged.

    Fields:
        losses: {name: [weight * loss, ...]}, scalars with gradients.
        statistics: {name: [value, ...]}, scalars without.
    """

    def __init__(self):
        self.losses: dict[str, list[Tensor]] = {}
        self.statistics: dict[str, list[Tensor]] = {}

    def loss(self) -> Tensor | float:
        """The sum over names and layers, to be added to the task's loss; 0.0 where no layer reported one."""
        return sum((loss for found in self.losses.values() for loss in found), 0.0)

    def means(self) -> dict[str, Tensor]:
        """{name: mean over layers} of losses, as weighted, and statistics, without gradients."""
        return {name: torch.stack(found).detach().mean() for name, found in (*self.losses.items(), *self.statistics.items())}


@contextlib.contextmanager
def collect_auxiliary() -> Iterator[Auxiliary]:
    """Gather what the layers called inside report.

    Example:
        >>> with collect_auxiliary() as auxiliary:
        ...     add_loss("balance", torch.tensor(2.0), weight=0.01)
        >>> auxiliary.loss()
        tensor(0.0200)
    """
    auxiliary = Auxiliary()
    _OPEN.append(auxiliary)
    try:
        yield auxiliary
    finally:
        _OPEN.remove(auxiliary)


def collecting() -> bool:
    """Whether somebody gathers: a layer need not compute what nobody takes."""
    return bool(_OPEN)


def add_loss(name: str, loss: Tensor, weight: float) -> None:
    """Report a scalar loss, to be trained with this weight."""
    if _OPEN:
        _OPEN[-1].losses.setdefault(name, []).append(weight * loss)


def add_statistic(name: str, value: Tensor) -> None:
    """Report a scalar to be logged, such as the share of tokens that were dropped."""
    if _OPEN:
        _OPEN[-1].statistics.setdefault(name, []).append(value.detach().float())
