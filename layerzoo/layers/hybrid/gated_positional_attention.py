"""Gated positional attention: each head weighs what a place contains against where it is, and starts as a convolution."""

import math

import torch
from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.layers.base import HeadsLayer
from layerzoo.ops.attention import attend
from layerzoo.ops.linear_recurrence import full_precision
from layerzoo.ops.offsets import masked_softmax, offsets, outer_sum


class GatedPositionalAttention(HeadsLayer):
    """GPSA.

    **Paper**: ConViT, arXiv 2103.10697.

    y_i = W_o concat_h(sum_j ((1 - s_h) softmax_j(q_i k_j / sqrt(d)) + s_h softmax_j(u_h . r_ij)) v_j), s_h = sigmoid(gate_h),
    r_ij = (dx, dy, dx^2 + dy^2) the offset from i to j. At the start u_h = a (2 c_x, 2 c_y, -1), so that head h looks at offset c_h of a
    square kernel, with a the locality strength, and the values pass unchanged.

    **Shape**: (B, C, H, W) or (B, N, C) with `grid=` -> the same, any H and W.

    **Cost**: time N^2 C + N C^2; memory N C + h N^2.

    **Args**:
        dim: channels C.
        num_heads: h; None = one head per 32 channels.
        locality_strength: a, in 1 / places^2; 1, the paper's.
        qkv_bias: bias in q, k, v; off, the paper's.

    **Raises**: ValueError for num_heads that do not divide dim, and in `forward` for tokens without `grid=`.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("gated_positional_attention", dim=64, num_heads=4)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: heads that do not fill a square kernel take its first places. Both softmaxes sum to one, so their
    mean is not normalised again.
    """

    card = Card(
        title="Gated positional self-attention", paper="2103.10697", year=2021, cost=(2, 2), needs_grid=True, symmetry="translation",
        sizes={"tiny": {"dim": 8, "num_heads": 2}, "base": {"dim": 64, "num_heads": 4}, "odd": {"dim": 15, "num_heads": 5, "qkv_bias": True}},
        limit={"equals": "mhsa", "options": {"qkv_bias": True}, "grid": (4, 6), "set": {"gate": -1e4}},
        differs="heads that do not fill a square kernel take its first places; the mean of the two softmaxes is not normalised again")

    def __init__(self, dim: int, *, num_heads: int | None = None, locality_strength: float = 1.0, qkv_bias: bool = False):
        super().__init__(dim, num_heads, qkv_bias)
        self.offset_score = nn.Parameter(kernel_offsets(self.num_heads) * locality_strength)
        self.gate = nn.Parameter(torch.ones(self.num_heads))
        nn.init.eye_(self.qkv.weight[2 * dim:])

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        q, k, v = self.split(tokens)
        places = masked_softmax(offset_scores(self.offset_score, grid), mask).to(v.dtype)
        share = self.gate.sigmoid()[:, None, None].to(v.dtype)
        # einsum, since matmul would copy the weights for each sample
        return self.merge((1 - share) * attend(q, k, v, mask) + share * torch.einsum("bhqk,bhkd->bhqd", places, v))


def offset_scores(weight: Tensor, grid: tuple[int, int]) -> Tensor:
    """(h, N, N): u . (dx, dy, dx^2 + dy^2), the sum of a score of rows and one of columns; not in float16, where squares overflow."""
    x, y, square = full_precision(weight)[0].T[:, :, None, None]
    dy, dx = (offsets(n, weight.device) for n in grid)
    return outer_sum(y * dy + square * dy**2, x * dx + square * dx**2)


def kernel_offsets(num_heads: int) -> Tensor:
    """(h, 3): (2 c_x, 2 c_y, -1) for the places c of the smallest square kernel with h places, centred."""
    side = math.ceil(math.sqrt(num_heads))
    head = torch.arange(num_heads)
    x, y = head % side - (side - 1) / 2, head // side - (side - 1) / 2
    return torch.stack((2 * x, 2 * y, -torch.ones(num_heads)), 1)
