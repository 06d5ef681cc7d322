"""The contract of a downsample: fewer places, other channels."""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.errors import bad_value


class Downsample(nn.Module):
    """(B, C, H, W) -> (B, C_out, H', W') in the same memory format: subclasses write `reduce(x)`.

    H' and W' are `out_grid((H, W))`: the halves, rounded up, unless a subclass says otherwise.

    Args:
        dim: channels C that come in.
        dim_out: channels C_out that go out.
    Raises:
        ValueError: for a dim or dim_out below 1, and in `forward` for an input that is not (B, dim, H, W).
    """

    card: ClassVar[Card]

    def __init__(self, dim: int, dim_out: int):
        super().__init__()
        for what, given in (("dim", dim), ("dim_out", dim_out)):
            if not isinstance(given, int) or given < 1:
                raise bad_value(what, got=repr(given), expected="a whole number >= 1", do="Pass the channels before and after.")
        self.dim, self.dim_out = dim, dim_out

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C_out, *out_grid((H, W)))."""
        if x.ndim != 4 or x.shape[1] != self.dim:
            raise bad_value(
                f"input of {type(self).__name__}", got=tuple(x.shape), expected=f"a map (B, {self.dim}, H, W)",
                do="Check dim= and the layout.")
        y = self.reduce(x)
        return y.contiguous() if x.is_contiguous() else y

    def out_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Height and width that come out where `grid`, (H, W), comes in."""
        return halved(grid)

    def reduce(self, x: Tensor) -> Tensor:
        """The formula of the downsample."""
        raise NotImplementedError(f"{type(self).__name__} must define reduce(); see layerzoo/downsample for examples")


def halved(grid: tuple[int, int]) -> tuple[int, int]:
    """Half the height and width, rounded up."""
    height, width = grid
    return -(-height // 2), -(-width // 2)


def squarest(count: int) -> tuple[int, int]:
    """(H, W) with H * W = count and H <= W as near as can be."""
    height = next(h for h in range(math.isqrt(count), 0, -1) if count % h == 0)
    return height, count // height
