"""Adaptively sparse attention: each head learns how many positions it gives no weight at all."""

import torch
from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.layers.base import HeadsLayer
from layerzoo.ops.entmax import entmax
from layerzoo.ops.linear_recurrence import full_precision, no_autocast


class AdaptivelySparse(HeadsLayer):
    """Attention by alpha-entmax with a learned alpha for each head.

    **Paper**: Adaptively Sparse Transformers, arXiv 1909.00015.

    y = W_o concat_h(entmax_a(q k^T / sqrt(d)) v), a_h = 1 + sigmoid(u_h): softmax as a -> 1, sparsemax at a = 2, and in between
    weights that are zero below a threshold.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same.

    **Cost**: time N^2 (C + 11 h) + N C^2, 11 powers for each weight; memory h N^2.

    **Args**:
        dim: channels C.
        num_heads: h; None = one head per 32 channels.
        qkv_bias: bias in q, k, v; on, as in ViT.
        causal: position i sees positions up to i, in row-major order.

    **Raises**: ValueError for num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("adaptively_sparse", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: alpha starts at 1.5 in every head, where the paper draws it at random; the threshold is found by
    Newton's method.
    """

    card = Card(
        title="Adaptively sparse attention", paper="1909.00015", year=2019, survey="Sparse", cost=(2, 2), causal=True, symmetry="permutation",
        sizes={"tiny": {"dim": 8, "num_heads": 2}, "base": {"dim": 64, "num_heads": 4}, "odd": {"dim": 15, "num_heads": 3}},
        limit={"equals": "mhsa", "options": {"num_heads": 4}, "equals_options": {"num_heads": 4}, "grid": (4, 6),
               "set": {"sparsity": -14.0}, "tol": 1e-5},
        differs="alpha starts at 1.5 in every head, not at random; the threshold is found by Newton's method")

    def __init__(self, dim: int, *, num_heads: int | None = None, qkv_bias: bool = True, causal: bool = False):
        super().__init__(dim, num_heads, qkv_bias)
        self.causal = causal
        self.sparsity = nn.Parameter(torch.zeros(self.num_heads, 1, 1))

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        q, k, v = full_precision(*self.split(tokens))
        length = tokens.shape[1]
        visible = torch.ones(length, length, dtype=torch.bool, device=tokens.device)
        visible = visible.tril() if self.causal else visible
        visible = visible if mask is None else visible & mask[:, None, None, :]
        with no_autocast(tokens.device):
            scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
            hidden = scores.amin((-2, -1), keepdim=True) - 2 / self.sparsity.sigmoid()  # a score so much below the largest has no weight
            weights = entmax(torch.where(visible, scores, hidden), 1 + self.sparsity.sigmoid())
            y = weights.masked_fill(~visible, 0) @ v
        return self.merge(y.to(tokens.dtype))
