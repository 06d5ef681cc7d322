"""Sparse feed-forward of Scaling Transformers: a small controller leaves one hidden channel of each block on."""

import torch
from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.ffn.mlp import check_hidden
from layerzoo.layers.base import TokenLayer
from layerzoo.ops.linear_recurrence import no_autocast

TEMPERATURE, HARD_SHARE = 0.1, 0.3  # the paper's code


class ScalingFFN(TokenLayer):
    """The per-position MLP of which a position uses one hidden channel of every B.

    **Paper**: Sparse is Enough in Scaling Transformers, arXiv 2111.12763.

    y = W_2 (m * relu(W_1 x + b_1)) + b_2, m one-hot in each block of B hidden channels: the largest of s = C_2 C_1 x + c there, with C_1
    (r, C), C_2 (C mlp_ratio, r). In training a sample is, with probability 0.3, hard: m is drawn from softmax(s / 0.1), which is the
    argmax of s + 0.1 Gumbel noise, with the gradient of softmax(s); else it is soft: m is softmax(s).

    **Shape**: (B, C, H, W) or (B, N, C) -> the same.

    **Cost**: time N C^2 mlp_ratio + N C r (1 + mlp_ratio), no less than `mlp`: all hidden channels are computed and then masked, which for
    the many positions of a map is faster than to gather rows of W_1 and W_2 for each. The paper's saving is in decoding one token at a
    time, which needs 1 / B of these rows. Memory N C mlp_ratio; 2 C^2 mlp_ratio + C r (1 + mlp_ratio) parameters.

    **Args**:
        dim: channels C.
        mlp_ratio: hidden channels over C; 4, the paper's.
        block_size: B; 16, where the paper has 64 for four times the width.
        controller_rank: r; None = C / B, the paper's.
        dropout: probability of dropping a hidden or an output channel; 0, as is usual in vision.

    **Raises**: ValueError for a block_size that does not divide the hidden channels, a controller_rank below 1, and an mlp_ratio that
    leaves no hidden channel.

    **Example**:
        >>> import torch
        >>> ScalingFFN(64, block_size=8)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: hard or soft is drawn for each sample, not for a batch.
    """

    card = Card(
        title="Sparse feed-forward", paper="2111.12763", year=2021, survey="Sparse", cost=(1, 1), causal="always", symmetry="permutation",
        sizes={"tiny": {"dim": 8, "mlp_ratio": 2, "block_size": 4}, "base": {"dim": 64},
               "odd": {"dim": 5, "mlp_ratio": 2.5, "block_size": 3, "controller_rank": 2}},
        differs="hard or soft is drawn for each sample, not for a batch")

    def __init__(
        self, dim: int, *, mlp_ratio: float = 4.0, block_size: int = 16, controller_rank: int | None = None, dropout: float = 0.0,
    ):
        super().__init__(dim)
        hidden = check_hidden(mlp_ratio, dim * mlp_ratio)
        if block_size < 1 or hidden % block_size:
            raise bad_value("block_size", got=block_size, expected=f"a divisor of the {hidden} hidden channels", do="Choose another.")
        rank = max(1, dim // block_size) if controller_rank is None else controller_rank
        if rank < 1:
            raise bad_value("controller_rank", got=rank, expected="a whole number >= 1", do="None is dim / block_size.")
        self.block_size = block_size
        self.controller = nn.Sequential(nn.Linear(dim, rank, bias=False), nn.Linear(rank, hidden))
        self.fc1 = nn.Linear(dim, hidden)
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden, dim)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        with no_autocast(tokens.device):  # rounding must not change a choice
            scores = self.controller(tokens.to(self.fc1.weight.dtype)).unflatten(-1, (-1, self.block_size))
            active = self.select(scores).flatten(-2)
        hidden = self.fc1(tokens).relu()
        return self.dropout(self.fc2(self.dropout(hidden * active.to(hidden.dtype))))

    def select(self, scores: Tensor) -> Tensor:
        """m of scores (B, N, blocks, channels of a block)."""
        if not self.training:
            return _one_hot(scores, scores.argmax(-1, keepdim=True))
        soft = scores.softmax(-1)
        drawn = (scores.detach() / TEMPERATURE).softmax(-1).cumsum(-1) < torch.rand_like(scores[..., :1])
        hard = _one_hot(scores, drawn[..., :-1].sum(-1, keepdim=True))
        is_hard = torch.rand_like(scores[:, :1, :1, :1]) < HARD_SHARE
        return torch.where(is_hard, hard, soft.detach()) + (soft - soft.detach())


def _one_hot(scores: Tensor, index: Tensor) -> Tensor:
    return torch.zeros_like(scores).scatter(-1, index, 1.0)
