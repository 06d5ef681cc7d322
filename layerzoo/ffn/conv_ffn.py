"""Convolutional FFN: an MLP with a 3x3 depthwise convolution over its hidden map."""

from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.ffn.mlp import MLP
from layerzoo.layers.base import as_map, map_to_tokens


class ConvFFN(MLP):
    """The per-position unit of PVTv2, which also sees the neighbours; its zero border tells places apart.

    **Paper**: PVTv2, arXiv 2106.13797.

    y = W_2 gelu(DWConv(W_1 x + b_1)) + b_2, with a k x k depthwise convolution of zero border.

    **Shape**: (B, C, H, W) or (B, N, C) with `grid=` -> the same.

    **Cost**: time and memory N C mlp_ratio (2 C + k^2) / 2 and N C mlp_ratio; 2 C^2 mlp_ratio parameters.

    **Args**:
        dim: channels C.
        mlp_ratio: hidden channels over C; 4, the paper's (8 in its first stages).
        dropout: probability of dropping a hidden or an output channel; 0, the paper's.

    **Raises**: ValueError for an mlp_ratio that leaves no hidden channel.

    **Example**:
        >>> import torch
        >>> ConvFFN(64, mlp_ratio=2)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: nothing; masked places are zeros to the convolution, as the border is.
    """

    card = Card(
        title="Convolutional feed-forward", paper="2106.13797", year=2021, cost=(1, 1), needs_grid=True, symmetry="translation",
        sizes={"tiny": {"dim": 8}, "base": {"dim": 64}, "odd": {"dim": 5, "mlp_ratio": 2.5}})

    def __init__(self, dim: int, *, mlp_ratio: float = 4.0, dropout: float = 0.0):
        super().__init__(dim, mlp_ratio=mlp_ratio, dropout=dropout)
        hidden = self.fc1.out_features
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        hidden = self.fc1(tokens)
        hidden = hidden if mask is None else hidden.masked_fill(~mask.unsqueeze(-1), 0)
        hidden = map_to_tokens(self.conv(as_map(hidden, grid)))
        return self.dropout(self.fc2(self.dropout(F.gelu(hidden))))
