"""Strided sparse attention: some heads see the tokens near by, the others every l-th token."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import HeadsLayer
from layerzoo.ops.attention import attend
from layerzoo.ops.sequence import real_first, take


class SparseStrided(HeadsLayer):
    """Sparse Transformer, strided pattern.

    **Paper**: Generating Long Sequences with Sparse Transformers, arXiv 1904.10509.

    y_i = W_o concat_h(sum_j softmax_j(q_i k_j / sqrt(d)) v_j), j over |i - j| < l in the local heads, which come first, and over
    (i - j) mod l = 0 in the strided ones; with causal only j <= i.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same; a map is read row by row.

    **Cost**: time N C (l + N / l) + N C^2; memory N C + N l: N^1.5 with l = sqrt(N).

    **Args**:
        dim: channels C.
        num_heads: h; None = one head per 32 channels.
        stride: l, in tokens; None = the square root of the number of real tokens, rounded up: the row of a square map, as in the paper.
        num_local_heads: heads that look near by; None = half of them, rounded up. All or none make the two kinds of layers of the
            paper that alternate in depth.
        qkv_bias: bias in q, k, v; on, as in ViT.
        causal: position i sees positions up to i, in row-major order; give a stride if outputs of longer sequences are to agree.

    **Raises**: ValueError for a stride below 1, num_local_heads that are not between 0 and the heads, and num_heads that do not
    divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("sparse_strided", dim=64, causal=True)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: it may look ahead, l - 1 tokens near by and every l-th; both patterns in one layer, in heads of their own,
    is one of the paper's three ways to join them.
    """

    card = Card(
        title="Sparse Transformer, strided", paper="1904.10509", year=2019, survey="FP", cost=(1.5, 1.5), causal=True,
        sizes={"tiny": {"dim": 8, "num_heads": 2}, "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 15, "num_heads": 3, "stride": 4, "num_local_heads": 1, "qkv_bias": False}},
        limit={"equals": "mhsa", "options": {"stride": 24, "num_local_heads": 2}, "grid": (4, 6)},
        differs="the local set has l keys, as the survey writes it, the paper's l + 1; without causal it looks ahead too; of the three ways to join "
                "the patterns it takes heads of their own")

    def __init__(
        self, dim: int, *, num_heads: int | None = None, stride: int | None = None, num_local_heads: int | None = None, qkv_bias: bool = True,
        causal: bool = False,
    ):
        super().__init__(dim, num_heads, qkv_bias)
        if stride is not None and stride < 1:
            raise bad_value("stride", got=stride, expected="a whole number of tokens, or None for sqrt(N)", do="Choose the width of the map.")
        num_local_heads = -(-self.num_heads // 2) if num_local_heads is None else num_local_heads
        if not 0 <= num_local_heads <= self.num_heads:
            raise bad_value("num_local_heads", got=num_local_heads, expected=f"0 to {self.num_heads} local heads", do="Leave it out for half of the heads.")
        self.stride, self.num_local_heads, self.causal = stride, num_local_heads, causal

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        return real_first(lambda packed, real: self.merge(self.mix_heads(packed, real)), tokens, mask)

    def mix_heads(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Heads (B, h, N, d) of tokens (B, N, C) whose real ones come first."""
        batch, length, _ = tokens.shape
        real = torch.ones(batch, length, dtype=torch.bool, device=tokens.device) if mask is None else mask
        longest = min(self.stride or math.ceil(math.sqrt(length)), length)
        squares = torch.arange(longest, device=real.device) ** 2  # as many are below n as sqrt(n) rounded up
        stride = (squares < real.sum(1, keepdim=True)).sum(1) if self.stride is None else torch.full_like(real.sum(1), longest)
        halves = [t.split([self.num_local_heads, self.num_heads - self.num_local_heads], 1) for t in self.split(tokens)]
        local, strided = zip(*halves)
        parts = [self.mix_local(*local, real, stride[:, None, None, None], longest)] if local[0].shape[1] else []
        parts += [self.mix_strided(*strided, real, stride[:, None, None], longest)] if strided[0].shape[1] else []
        return torch.cat(parts, 1)

    def mix_local(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor, stride: Tensor, size: int) -> Tensor:
        """Blocks of `size` queries are folded into the batch, with the keys they may need."""
        batch, length, ahead = q.shape[0], q.shape[2], 0 if self.causal else size - 1
        pad, width = -length % size, 2 * size - 1 + ahead
        near = [F.pad(t, (0, 0, size - 1, pad + ahead)).unfold(-2, width, size).mT for t in (k, v, real[:, None, :, None])]
        asks = F.pad(real, (0, pad)).unflatten(1, (-1, size))[..., None]
        back = torch.arange(size, device=q.device)[:, None] + size - 1 - torch.arange(width, device=q.device)  # i - j
        inside = (back < stride) & (back >= 0 if self.causal else back > -stride)
        bias = torch.where(near[2][:, 0].mT & inside | ~asks, 0.0, float("-inf"))  # padding sees anything rather than nothing
        q = F.pad(q, (0, 0, 0, pad)).unflatten(2, (-1, size))
        q, k, v = (t.transpose(1, 2).flatten(0, 1) for t in (q, *near[:2]))
        y = attend(q, k, v, bias=bias.flatten(0, 1).unsqueeze(1))
        return y.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2, 3)[:, :, :length]

    def mix_strided(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor, stride: Tensor, columns: int) -> Tensor:
        """Token i is row i // l of column i mod l; columns are folded into the batch. No sample has more rows than the fullest."""
        batch, length = q.shape[0], q.shape[2]
        rows = -(-length // columns)
        column, row = torch.arange(columns, device=q.device)[:, None], torch.arange(rows, device=q.device)
        place = row * stride + column
        inside = (column < stride) & (place < real.sum(1)[:, None, None])  # (B, columns, rows)
        place = torch.where(inside, place, 0).flatten(1)
        q, k, v = (take(t, place).unflatten(2, (columns, rows)).transpose(1, 2).flatten(0, 1) for t in (q, k, v))
        visible = (inside | ~inside.any(-1, keepdim=True)).flatten(0, 1)[:, None, None]  # an empty column sees anything
        visible = visible & (row <= row[:, None]) if self.causal else visible
        y = attend(q, k, v, bias=torch.where(visible, 0.0, float("-inf"))).unflatten(0, (batch, columns)).transpose(1, 2).flatten(2, 3)
        token = torch.arange(length, device=q.device)
        back = (token % stride[:, 0] * rows + token // stride[:, 0]).clamp(max=columns * rows - 1)
        return take(y, back)
