"""Attention whose heads keep the full width, as in the proof that attention contains convolution."""

from torch import Tensor, nn

from layerzoo.errors import bad_value
from layerzoo.layers.base import TokenLayer
from layerzoo.ops.offsets import masked_softmax, mix_apart
from layerzoo.positions.base import Position


class WideHeads(TokenLayer):
    """y = W_o (b + sum_h A_h x W_h) with weights A_h (N, N) of places alone: A_h = softmax(b_h) for the scores b_h of a position encoding.

    Args:
        dim: channels C in and out, and of every head.
        num_heads: h.

    Subclasses make `position`, of kind "bias".

    Raises:
        ValueError: for num_heads below 1.
    """

    position: Position

    def __init__(self, dim: int, num_heads: int):
        super().__init__(dim)
        if num_heads < 1:
            raise bad_value("num_heads", got=num_heads, expected="a whole number >= 1", do="The paper has 9, for kernels of 3 x 3.")
        self.num_heads = num_heads
        self.value = nn.Linear(num_heads * dim, dim)  # takes the heads joined; each is mixed after its part of this map, which is the same
        self.proj = nn.Linear(dim, dim)
        for linear in (self.value, self.proj):
            nn.init.trunc_normal_(linear.weight, std=0.02)  # the paper's code

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        values = self.values(tokens)
        if mask is None and self.position.separable:
            rows, columns = (scores.softmax(-1).to(values.dtype) for scores in self.position.apart(grid))
            return self.finish(mix_apart(rows, columns, values.unflatten(2, grid)).flatten(1, 2))
        return self.finish(weigh(self.position.bias(grid), values, mask))

    def values(self, tokens: Tensor) -> Tensor:
        """x W_h of each head: (B, h, N, C)."""
        weight = self.value.weight.unflatten(1, (self.num_heads, -1)).transpose(0, 1).flatten(0, 1)
        return nn.functional.linear(tokens, weight).unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    def finish(self, mixed: Tensor) -> Tensor:
        """The sum over heads (B, N, C), projected."""
        return self.proj(mixed + self.value.bias)


def weigh(scores: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """sum_h softmax(scores_h) values_h over the real keys of a mask (B, N): scores (h, N, N), values (B, h, N, C) -> (B, N, C)."""
    weights = masked_softmax(scores, mask).to(values.dtype)
    if mask is not None:
        return (weights @ values).sum(1)
    return weights[0].transpose(0, 1).flatten(1) @ values.flatten(1, 2)
