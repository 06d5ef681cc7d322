"""SwiGLU: an MLP whose hidden channels are gated by a second linear map."""

from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.ffn.mlp import check_hidden
from layerzoo.layers.base import TokenLayer


class SwiGLU(TokenLayer):
    """The gated per-position unit with SiLU.

    **Paper**: GLU Variants Improve Transformer, arXiv 2002.05202.

    y = W_2 (silu(W x) * (V x)), with 2/3 mlp_ratio C hidden channels: as many parameters as `mlp` of the same mlp_ratio.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same.

    **Cost**: time and memory N C^2 mlp_ratio and N C mlp_ratio; 2 C^2 mlp_ratio parameters.

    **Args**:
        dim: channels C.
        mlp_ratio: 3/2 of the hidden channels over C; 4, the paper's.
        dropout: probability of dropping a hidden or an output channel; 0, the paper's.

    **Raises**: ValueError for an mlp_ratio that leaves no hidden channel.

    **Example**:
        >>> import torch
        >>> SwiGLU(64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: nothing; W and V are the two halves of one linear map.
    """

    card = Card(
        title="SwiGLU", paper="2002.05202", year=2020, cost=(1, 1), causal="always", symmetry="permutation",
        sizes={"tiny": {"dim": 8}, "base": {"dim": 64}, "odd": {"dim": 5, "mlp_ratio": 2.5}})

    def __init__(self, dim: int, *, mlp_ratio: float = 4.0, dropout: float = 0.0):
        super().__init__(dim)
        hidden = check_hidden(mlp_ratio, dim * mlp_ratio * 2 / 3)
        self.fc1 = nn.Linear(dim, 2 * hidden, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden, dim, bias=False)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        gate, value = self.fc1(tokens).chunk(2, -1)
        hidden = self.dropout(F.silu(gate) * value)
        return self.dropout(self.fc2(hidden))
