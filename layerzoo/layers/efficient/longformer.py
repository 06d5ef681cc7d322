"""Longformer: every token attends to a sliding window and to a few global tokens, which attend to all."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import HeadsLayer
from layerzoo.ops.attention import attend
from layerzoo.ops.sequence import real_first

SHORTEST_BLOCK = 16  # queries that share a folded window; fewer waste the kernel


class Longformer(HeadsLayer):
    """Sliding-window attention with global tokens.

    **Paper**: Longformer, arXiv 2004.05150.

    y_i = W_o concat_h(sum_j softmax_j(q_i k_j / sqrt(d)) v_j), j over |i - j| <= w // 2 and the global tokens j < g, each once; for
    a global token i < g the sum is over all j, with other projections q', k', v' in place of q, k, v. With causal every sum is over j <= i.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same; a map is read row by row.

    **Cost**: time N C (w + g) + N C^2; memory N C + N (w + g); causal the same.

    **Args**:
        dim: channels C.
        num_heads: h; None = one head per 32 channels.
        window_size: w, in tokens: w // 2 on each side and the query's own; 64, since the paper's 512 are for 4096 tokens and more.
        num_global: g, the first (real) tokens; 1, the paper's for classification, where it is the class token.
        qkv_bias: bias in the six projections; on, as in the paper's code.
        causal: position i sees positions up to i, in row-major order; global tokens are then a memory of the beginning.

    **Raises**: ValueError for a window_size below 1, a num_global below 0, and num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("longformer", dim=64, window_size=9)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: windows are not dilated; the global projections start at random, not as copies of the local ones.
    """

    card = Card(
        title="Longformer attention", paper="2004.05150", year=2020, survey="FP+M", cost=(1, 1), causal=True,
        sizes={"tiny": {"dim": 8, "num_heads": 2, "window_size": 4, "num_global": 2}, "base": {"dim": 64, "num_heads": 4, "window_size": 16},
               "odd": {"dim": 15, "num_heads": 3, "window_size": 41, "num_global": 3, "qkv_bias": False}},
        limit={"equals": "mhsa", "options": {"window_size": 48, "num_global": 0}, "grid": (4, 6)},
        differs="windows are not dilated; the global projections start at random, not as copies of the local ones")

    def __init__(
        self, dim: int, *, num_heads: int | None = None, window_size: int = 64, num_global: int = 1, qkv_bias: bool = True, causal: bool = False,
    ):
        super().__init__(dim, num_heads, qkv_bias)
        if window_size < 1:
            raise bad_value("window_size", got=window_size, expected="a whole number >= 1 of tokens", do="Choose an even one such as 64.")
        if num_global < 0:
            raise bad_value("num_global", got=num_global, expected="a whole number >= 0 of global tokens", do="Choose 0 for none.")
        self.window_size, self.num_global, self.causal = window_size, num_global, causal
        if num_global:
            self.query_global = nn.Linear(dim, dim, bias=qkv_bias)
            self.key_value_global = nn.Linear(dim, 2 * dim, bias=qkv_bias)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        return real_first(lambda packed, real: self.merge(self.mix_heads(packed, real)), tokens, mask)

    def mix_heads(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Heads (B, h, N, d) of tokens (B, N, C) whose real ones come first."""
        y = self.mix_windows(*self.split(tokens), mask)
        if not self.num_global:
            return y
        first = tokens[:, : self.num_global]
        seen, mask = (first, None) if self.causal else (tokens, mask)  # what a real first token sees is real, as masked ones come last
        q = self.query_global(first).unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)
        k, v = self.key_value_global(seen).unflatten(2, (2, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        return torch.cat([attend(q, k, v, mask, causal=self.causal), y[:, :, self.num_global:]], 2)

    def mix_windows(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """One softmax over window and global tokens; blocks of queries are folded into the batch, with the keys they may need."""
        batch, length, count = q.shape[0], q.shape[2], min(self.num_global, q.shape[2])
        reach = min(self.window_size // 2, length - 1)
        size = min(max(reach, SHORTEST_BLOCK), length)
        real = torch.ones(batch, length, dtype=torch.bool, device=q.device) if mask is None else mask
        visible = _visible(real, count, size, reach, self.causal)
        q = F.pad(q, (0, 0, 0, -length % size)).unflatten(2, (-1, size)).transpose(1, 2).flatten(0, 1)
        k, v = (_with_global(t, count, size, reach) for t in (k, v))
        y = attend(q, k, v, bias=torch.where(visible, 0.0, float("-inf")))
        return y.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2, 3)[:, :, :length]


def _windows(x: Tensor, size: int, reach: int) -> Tensor:
    """(..., N, d), padded by zeros, as (..., n, size + 2 reach, d): the tokens within reach of each of n blocks."""
    return F.pad(x, (0, 0, reach, reach - x.shape[-2] % -size)).unfold(-2, size + 2 * reach, size).mT


def _with_global(x: Tensor, count: int, size: int, reach: int) -> Tensor:
    """Keys or values (B, h, N, d) as (B n, h, count + size + 2 reach, d), the global ones first."""
    near = _windows(x, size, reach)
    return torch.cat([x[:, :, None, :count].expand(-1, -1, near.shape[2], -1, -1), near], 3).transpose(1, 2).flatten(0, 1)


def _visible(real: Tensor, count: int, size: int, reach: int, causal: bool) -> Tensor:
    """(B n, 1, size, count + size + 2 reach): which of these keys a query that is not global sees, from the real tokens (B, N)."""
    place = torch.arange(real.shape[1], device=real.device)
    near = _windows((real & (place >= count))[..., None], size, reach).mT  # (B, n, 1, keys)
    offset = torch.arange(size + 2 * reach, device=real.device) - torch.arange(size, device=real.device)[:, None]
    asks = F.pad(real, (0, -real.shape[1] % size)).unflatten(1, (-1, size))[..., None]
    inside = (offset >= 0) & (offset <= (reach if causal else 2 * reach))
    near = near & inside | ~asks  # padding sees anything rather than nothing: its output is dropped
    return torch.cat([real[:, None, None, :count].expand(*near.shape[:3], -1), near], 3).flatten(0, 1).unsqueeze(1)
