"""Exponential moving average of weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class WeightAverage(nn.Module):
    """a_t = d_t a_(t-1) + (1 - d_t) w_t, d_t = min(decay, (1 + t) / (10 + t)), over every float parameter and buffer.

    The copy starts as the model itself; the early d_t keep a short run from remembering its initialisation. Integer
    buffers are copied. An update reads nothing on the host.

    Args:
        model: the module to follow; `self.model` is its average.
        decay: d in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__()
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False)

    def follow(self, model: nn.Module) -> None:
        """Pair the tensors of the average with those of `model`; call again when either moves to another device."""
        pairs = list(zip(_tensors(self.model), _tensors(model), strict=True))
        self.floats = tuple(zip(*((a, w) for a, w in pairs if a.is_floating_point())))
        self.others = [(a, w) for a, w in pairs if not a.is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimiser step `step`, counted from 1."""
        torch._foreach_lerp_(*self.floats, 1 - min(self.decay, (1 + step) / (10 + step)))
        for average, value in self.others:
            average.copy_(value)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [local(tensor.detach()) for tensor in (*model.parameters(), *model.buffers())]


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that lies in parts on all, which holds its values; any other as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
