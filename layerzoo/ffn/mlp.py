"""MLP: two linear maps with GELU or hardswish between them, at every position alone."""

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import TokenLayer, check_choice

_ACTS = {"gelu": F.gelu, "gelu_tanh": partial(F.gelu, approximate="tanh"), "hardswish": F.hardswish}


class MLP(TokenLayer):
    """The per-position MLP of a transformer.

    **Paper**: Attention Is All You Need, arXiv 1706.03762; with GELU as in ViT, arXiv 2010.11929.

    y = W_2 act(W_1 x + b_1) + b_2, act(x) = gelu(x), or x min(1, max(0, x / 6 + 1 / 2)) with act="hardswish"; with norm="batch" a
    batch norm follows either map, as in EfficientFormer, arXiv 2206.01191.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same.

    **Cost**: time and memory N C^2 mlp_ratio and N C mlp_ratio; 2 C^2 mlp_ratio parameters.

    **Args**:
        dim: channels C.
        mlp_ratio: hidden channels over C; 4, the paper's.
        dropout: probability of dropping a hidden or an output channel; 0, as is usual in vision.
        act: "gelu", "gelu_tanh", its approximation, as in MaxViT, arXiv 2204.01697, or "hardswish" as in LeViT, arXiv 2104.01136; gelu, as
            in ViT.
        norm: "none" or "batch"; none, the paper's. Batch is for maps without masks, and for blocks without a norm of their own.

    **Raises**: ValueError for an mlp_ratio that leaves no hidden channel, another act and another norm.

    **Example**:
        >>> import torch
        >>> MLP(64, mlp_ratio=2)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: GELU in place of ReLU.
    """

    card = Card(
        title="MLP", paper="1706.03762", year=2017, cost=(1, 1), causal="always", symmetry="permutation",
        sizes={"tiny": {"dim": 8}, "base": {"dim": 64}, "odd": {"dim": 5, "mlp_ratio": 2.5, "act": "hardswish"}}, differs="GELU in place of ReLU")

    def __init__(self, dim: int, *, mlp_ratio: float = 4.0, dropout: float = 0.0, act: str = "gelu", norm: str = "none"):
        super().__init__(dim)
        check_choice("act", act, tuple(_ACTS))
        check_choice("norm", norm, ("none", "batch"))
        hidden = check_hidden(mlp_ratio, dim * mlp_ratio)
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for width in (hidden, dim)) if norm == "batch" else None
        self.fc1 = nn.Linear(dim, hidden)
        self.act = _ACTS[act]
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden, dim)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        hidden = self.dropout(self.act(self.normed(self.fc1(tokens), 0)))
        return self.dropout(self.normed(self.fc2(hidden), 1))

    def normed(self, tokens: Tensor, which: int) -> Tensor:
        return tokens if self.norms is None else self.norms[which](tokens.mT).mT


def check_hidden(mlp_ratio: float, width: float) -> int:
    """The number of hidden channels, `width` rounded down, if there is one at least."""
    if width < 1:
        raise bad_value("mlp_ratio", got=mlp_ratio, expected="a number that leaves a hidden channel", do="Choose one such as 4.")
    return int(width)
