"""The contract of a position encoding: how order enters a layer that is blind to it."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from layerzoo.card import Card


class Position(nn.Module):
    """A position encoding of one of three kinds.

    - "absolute": `forward(x)` adds to a map (B, C, H, W); models apply it after the stem. Built as `(dim, *, ...)`.
    - "rotary": `rotate(q, grid)` turns queries and keys (B, h, N, d); attention layers apply it. Built as `(head_dim, *, ...)`.
    - "bias": `bias(grid)` gives (h, N, N) to add to the scores; attention layers apply it. Built as `(num_heads, *, grid)`.
    """

    card: ClassVar[Card]
    kind: ClassVar[str] = "absolute"

    def forward(self, x: Tensor) -> Tensor:
        """Add the encoding to a map (B, C, H, W)."""
        raise NotImplementedError(f"{type(self).__name__} is of kind {self.kind!r} and is applied inside attention layers")
