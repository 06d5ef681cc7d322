"""Criss-cross attention: every position attends to its row and its column in one softmax, and a second pass reaches the whole map."""

import torch
from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import TokenLayer


class CrissCross(TokenLayer):
    """Recurrent criss-cross attention.

    **Paper**: CCNet, arXiv 1811.11721.

    y = x_R - x_0, x_0 = x, x_t = x_{t-1} + A(x_{t-1}), A(x)_u = sum_v softmax_v(q_u k_v) v_v, v over the H + W - 1 positions in the row
    or in the column of u, u itself once; q and k of C / c channels. All R passes have the same weights.

    **Shape**: (B, C, H, W) or (B, N, C) with `grid=` -> the same.

    **Cost**: time R N (H + W) C + R N C^2, that is N^1.5 on a square map; memory R N (H + W) + R N C.

    **Args**:
        dim: channels C.
        reduction: c, by which q and k have fewer channels; 8, the paper's.
        recurrence: R, passes; 2, the paper's, after which every position has seen all.
        qkv_bias: bias in q, k, v; on, as in the paper's code.

    **Raises**: ValueError for a reduction that is not between 1 and dim, and a recurrence below 1.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("criss_cross", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: what it adds to its input is returned, since the block of a model adds it; its code has one more factor
    on A, zero at the start, which is the block's layer scale. The reduction to fewer channels before and the convolutions after are
    not here.
    """

    card = Card(
        title="Criss-cross attention (CCNet)", paper="1811.11721", year=2018, survey="FP", cost=(1.5, 1.5), needs_grid=True,
        symmetry="translation",
        sizes={"tiny": {"dim": 8}, "base": {"dim": 64}, "odd": {"dim": 15, "reduction": 4, "recurrence": 3, "qkv_bias": False}},
        differs="what it adds to its input is returned, since the block adds it; its code's factor on that is the block's layer scale")

    def __init__(self, dim: int, *, reduction: int = 8, recurrence: int = 2, qkv_bias: bool = True):
        super().__init__(dim)
        if not 1 <= reduction <= dim:
            raise bad_value("reduction", got=reduction, expected=f"1 to {dim}, the channels", do="The paper's is 8.")
        if recurrence < 1:
            raise bad_value("recurrence", got=recurrence, expected="a whole number of passes >= 1", do="The paper's is 2.")
        self.recurrence = recurrence
        self.widths = dim // reduction, dim // reduction, dim
        self.qkv = nn.Linear(dim, sum(self.widths), bias=qkv_bias)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        x = tokens.unflatten(1, grid)
        hidden = None if mask is None else ~mask.unflatten(1, grid)
        y = self.cross(x, hidden)
        for _ in range(self.recurrence - 1):
            y = y + self.cross(x + y, hidden)
        return y.flatten(1, 2)

    def cross(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        """A(x) of a map (B, H, W, C); hidden (B, H, W) bool is True where a position is seen by nobody."""
        q, k, v = self.qkv(x).split(self.widths, dim=-1)
        rows = q @ k.mT  # (B, H, W, W)
        columns = q.transpose(1, 2) @ k.transpose(1, 2).mT  # (B, W, H, H)
        own = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        columns = columns.masked_fill(own, float("-inf"))
        if hidden is not None:
            rows = rows.masked_fill(hidden.unsqueeze(2), float("-inf"))
            columns = columns.masked_fill(hidden.mT.unsqueeze(2), float("-inf"))
        with torch.no_grad():  # cancels in the quotient
            peak = torch.maximum(rows.amax(-1), columns.amax(-1).mT).clamp(min=torch.finfo(rows.dtype).min).unsqueeze(-1)
        rows, columns = rows.sub_(peak).exp_(), columns.sub_(peak.transpose(1, 2)).exp_()  # in place: the scores are needed by nobody
        total = rows.sum(-1, keepdim=True) + columns.sum(-1, keepdim=True).transpose(1, 2)
        y = rows @ v + (columns @ v.transpose(1, 2)).transpose(1, 2)
        return y / total.masked_fill(total == 0, 1)  # where nothing is seen
