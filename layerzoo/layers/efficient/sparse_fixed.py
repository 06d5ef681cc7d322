"""Fixed sparse attention: some heads see their own block, the others the last tokens of every block."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import HeadsLayer
from layerzoo.ops.attention import attend
from layerzoo.ops.sequence import real_first, take


class SparseFixed(HeadsLayer):
    """Sparse Transformer, fixed pattern.

    **Paper**: Generating Long Sequences with Sparse Transformers, arXiv 1904.10509.

    y_i = W_o concat_h(sum_j softmax_j(q_i k_j / sqrt(d)) v_j), j over floor(j / l) = floor(i / l) in the block heads, which come
    first, and over the summary tokens, j mod l >= l - c, in the others; with causal only j <= i. Where a query sees no summary
    token (with causal, before the first one) its summary heads are zero.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same; a map is read row by row.

    **Cost**: time N C (l + c N / l) + N C^2, which is N^1.5 with l = sqrt(N); memory N C, with causal N (l + c N / l) for its masks.

    **Args**:
        dim: channels C.
        num_heads: h; None = one head per 32 channels.
        stride: l, the tokens of a block; None = the square root of the number of real tokens, rounded up, as in the paper.
        num_summary: c, summary tokens of a block, at most l; 8, the least of the paper's 8, 16 and 32, which are for l of 128 and more.
        num_local_heads: heads that see their block; None = half of them, rounded up. All or none make the two kinds of layers of
            the paper that alternate in depth.
        qkv_bias: bias in q, k, v; on, as in ViT.
        causal: position i sees positions up to i, in row-major order; give a stride if outputs of longer sequences are to agree.

    **Raises**: ValueError for a stride or num_summary below 1, num_local_heads that are not between 0 and the heads, and num_heads
    that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("sparse_fixed", dim=64, causal=True)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: it may look ahead; all summary heads share the same c tokens of a block (the paper also tries other ones
    for each head); both patterns in one layer, in heads of their own, is one of the paper's three ways to join them.
    """

    card = Card(
        title="Sparse Transformer, fixed", paper="1904.10509", year=2019, survey="FP", cost=(1.5, 1), causal=True,
        sizes={"tiny": {"dim": 8, "num_heads": 2, "num_summary": 2}, "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 15, "num_heads": 3, "stride": 4, "num_summary": 1, "num_local_heads": 1, "qkv_bias": False}},
        limit={"equals": "mhsa", "options": {"stride": 24, "num_summary": 24}, "grid": (4, 6)},
        differs="without causal it looks ahead too; all summary heads share the summary tokens; the patterns are in heads of their own")

    def __init__(
        self, dim: int, *, num_heads: int | None = None, stride: int | None = None, num_summary: int = 8, num_local_heads: int | None = None,
        qkv_bias: bool = True, causal: bool = False,
    ):
        super().__init__(dim, num_heads, qkv_bias)
        if stride is not None and stride < 1:
            raise bad_value("stride", got=stride, expected="a whole number >= 1 of tokens in a block", do="Leave it out for sqrt(N).")
        if num_summary < 1:
            raise bad_value("num_summary", got=num_summary, expected="a whole number >= 1 of summary tokens", do="Choose one such as 8.")
        num_local_heads = -(-self.num_heads // 2) if num_local_heads is None else num_local_heads
        if not 0 <= num_local_heads <= self.num_heads:
            raise bad_value("num_local_heads", got=num_local_heads, expected=f"0 to {self.num_heads} block heads", do="Leave it out for half of the heads.")
        self.stride, self.num_summary, self.num_local_heads, self.causal = stride, num_summary, num_local_heads, causal

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        return real_first(lambda packed, real: self.merge(self.mix_heads(packed, real)), tokens, mask)

    def mix_heads(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Heads (B, h, N, d) of tokens (B, N, C) whose real ones come first."""
        batch, length, _ = tokens.shape
        count = torch.full((batch, 1), length, device=tokens.device) if mask is None else mask.sum(1, keepdim=True)
        longest = min(self.stride or math.ceil(math.sqrt(length)), length)
        squares = torch.arange(longest, device=count.device) ** 2  # as many are below n as sqrt(n) rounded up
        stride = (squares < count).sum(1, keepdim=True) if self.stride is None else torch.full_like(count, self.stride)
        qkv, parts, own = self.split(tokens), [], self.num_local_heads
        if own:
            parts.append(self.mix_blocks(*(t[:, :own] for t in qkv), count[..., None], stride[..., None], longest))
        if own < self.num_heads:
            parts.append(self.mix_summaries(*(t[:, own:] for t in qkv), count[..., None], stride[..., None], longest))
        return torch.cat(parts, 1)

    def mix_blocks(self, q: Tensor, k: Tensor, v: Tensor, count: Tensor, stride: Tensor, size: int) -> Tensor:
        """Blocks of l tokens, `size` in the longest sample, are folded into the batch. No sample has more of them than the longest."""
        total, column, token = -(-q.shape[2] // size), torch.arange(size, device=q.device), torch.arange(q.shape[2], device=q.device)
        place = torch.arange(total, device=q.device)[:, None] * stride + column
        inside = (column < stride) & (place < count)  # (B, blocks, size)
        q, k, v = (take(t, torch.where(inside, place, 0).flatten(1)).unflatten(2, (total, size)).transpose(1, 2).flatten(0, 1) for t in (q, k, v))
        visible = (inside | ~inside.any(-1, keepdim=True)).flatten(0, 1)[:, None, None]  # an empty block sees anything
        visible = visible & (column <= column[:, None]) if self.causal else visible
        y = attend(q, k, v, bias=_bias(visible)).unflatten(0, (-1, total)).transpose(1, 2).flatten(2, 3)
        return take(y, (token // stride[:, 0] * size + token % stride[:, 0]).clamp(max=total * size - 1))

    def mix_summaries(self, q: Tensor, k: Tensor, v: Tensor, count: Tensor, stride: Tensor, size: int) -> Tensor:
        """All queries see the last c tokens of every block, and a key and value of zeros where there are none to see."""
        end = torch.arange(min(self.num_summary, self.stride or size), device=q.device)
        token = torch.arange(q.shape[2], device=q.device)[:, None]
        place = (torch.arange(-(-q.shape[2] // size), device=q.device)[:, None] + 1) * stride - 1 - end
        inside = ((end < stride) & (place < count)).flatten(1)[:, None]  # (B, 1, summaries)
        place = torch.where(inside[:, 0], place.flatten(1), 0)
        visible = inside & (place[:, None] <= token) if self.causal else inside
        visible = torch.cat([visible, ~visible.any(-1, keepdim=True)], -1)[:, None]
        return attend(q, *(F.pad(take(t, place), (0, 0, 0, 1)) for t in (k, v)), bias=_bias(visible))


def _bias(visible: Tensor) -> Tensor:
    return torch.where(visible, 0.0, float("-inf"))
