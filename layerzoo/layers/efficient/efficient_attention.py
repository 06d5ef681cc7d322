"""Efficient attention: softmax of queries over channels and of keys over positions, so that keys meet values first."""

import torch
from torch import Tensor

from layerzoo.card import Card
from layerzoo.layers.base import HeadsLayer
from layerzoo.ops.linear_recurrence import full_precision, no_autocast


class EfficientAttention(HeadsLayer):
    """Attention as d global context vectors, which each position mixes.

    **Paper**: Efficient Attention: Attention with Linear Complexities, arXiv 1812.01243.

    y_i = W_o concat_h(rho(q_i) (rho(K)^T V)), rho(q_i) = softmax over the d channels of a head, rho(K) = softmax over positions of
    each channel.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same.

    **Cost**: time N C d + N C^2; memory N C.

    **Args**:
        dim: channels C.
        num_heads: h; None = one head per 32 channels.
        qkv_bias: bias in q, k, v; on, as in the paper's code.

    **Raises**: ValueError for num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("efficient_attention", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: nothing; of its two normalisations this is softmax.
    """

    card = Card(
        title="Efficient attention", paper="1812.01243", year=2018, cost=(1, 1), symmetry="permutation",
        sizes={"tiny": {"dim": 8, "num_heads": 2}, "base": {"dim": 64, "num_heads": 4}, "odd": {"dim": 15, "num_heads": 3, "qkv_bias": False}})

    def __init__(self, dim: int, *, num_heads: int | None = None, qkv_bias: bool = True):
        super().__init__(dim, num_heads, qkv_bias)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        q, k, v = full_precision(*self.split(tokens))
        with no_autocast(tokens.device):
            if mask is None:
                k = k.softmax(-2)
            else:
                real = mask[:, None, :, None]
                k = k.masked_fill(~real, torch.finfo(k.dtype).min).softmax(-2) * real
            y = q.softmax(-1) @ (k.transpose(-2, -1) @ v)
        return self.merge(y.to(tokens.dtype))
