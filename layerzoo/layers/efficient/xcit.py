"""Cross-covariance attention: channels attend to channels, so that positions cost no more than their number."""

import torch
from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.layers.base import HeadsLayer
from layerzoo.ops.linear_recurrence import full_precision, no_autocast


class XCiT(HeadsLayer):
    """Cross-covariance attention.

    **Paper**: XCiT, arXiv 2106.09681.

    y = W_o concat_h(V softmax(K^ Q^T / tau)^T), K^ and Q^ (d, N) the channels of a head, each scaled to length 1 over the positions;
    tau is learned for each head, and the softmax runs over the d channels of the keys.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same.

    **Cost**: time N C d + N C^2; memory N C.

    **Args**:
        dim: channels C.
        num_heads: h; None = one head per 32 channels.
        qkv_bias: bias in q, k, v; on, as in the paper's code.

    **Raises**: ValueError for num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("xcit", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: nothing; the local patch interaction that follows it in XCiT is a block of its own.
    """

    card = Card(
        title="Cross-covariance attention", paper="2106.09681", year=2021, cost=(1, 1), symmetry="permutation",
        sizes={"tiny": {"dim": 8, "num_heads": 2}, "base": {"dim": 64, "num_heads": 4}, "odd": {"dim": 15, "num_heads": 3, "qkv_bias": False}},
        differs="nothing; the local patch interaction that follows it in XCiT is a block of its own")

    def __init__(self, dim: int, *, num_heads: int | None = None, qkv_bias: bool = True):
        super().__init__(dim, num_heads, qkv_bias)
        self.temperature = nn.Parameter(torch.ones(self.num_heads, 1, 1))

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        q, k, v = full_precision(*self.split(tokens))
        if mask is not None:
            q, k = (t * mask[:, None, :, None] for t in (q, k))
        with no_autocast(tokens.device):
            cosines = q.transpose(-2, -1) @ k / (_lengths(q).transpose(-2, -1) * _lengths(k))  # d x d is scaled, not N x d
            y = v @ (cosines * self.temperature).softmax(-1).transpose(-2, -1)
        return self.merge(y.to(tokens.dtype))


def _lengths(heads: Tensor) -> Tensor:
    """Of each channel over the positions (B, h, N, d): (B, h, 1, d), at least 1e-12."""
    return heads.norm(dim=-2, keepdim=True).clamp(min=1e-12)
