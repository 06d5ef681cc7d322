"""What a public implementation of a layer is, to the lists of pairs and to `bench_peers`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

DIM, HEADS = 256, 4


class Called(nn.Module):
    """A peer as a module of one input and one output.

    Args:
        module: the peer.
        call: how it maps (B, N, C) to (B, N, C); None = as it is.
    """

    def __init__(self, module: nn.Module, call: Callable[[nn.Module, Tensor], Tensor] | None = None):
        super().__init__()
        self.module, self.call = module, call

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x) if self.call is None else self.call(self.module, x)


@dataclass(frozen=True)
class Peer:
    """A public implementation and the layer it is measured against.

    Fields:
        package: its name in the index.
        module: where it is imported from.
        make: (that module, N) to the peer.
        layer: ours.
        options: of ours, which make it the same computation as far as the peer's allow.
        maps: whether the peer takes maps (B, C, H, W).
    """

    package: str
    module: str
    make: Callable[[object, int], nn.Module]
    layer: str
    options: dict = field(default_factory=dict)
    maps: bool = False


def first(module: nn.Module, x: Tensor) -> Tensor:
    """The first of what a module returns."""
    return module(x)[0]


def with_output(attention: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> nn.Module:
    """transformers keeps the output projection of its self-attention in another module: one is added, as ours has it."""
    return Called(nn.ModuleList([attention, nn.Linear(DIM, DIM)]), lambda parts, x: parts[1](call(parts[0], x)))
