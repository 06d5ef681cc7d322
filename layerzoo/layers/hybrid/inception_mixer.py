"""Inception mixer: some channels pass a convolution, some a max-pooling, and the rest attention over a coarse map."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.attention.mhsa import MHSA
from layerzoo.layers.base import TokenLayer, as_map, check_odd, map_to_tokens
from layerzoo.ops.token_maps import check_count, convolve, pool_tokens, spread_tokens


class InceptionMixer(TokenLayer):
    """Inception token mixer of iFormer: a high-frequency and a low-frequency mixer on groups of channels.

    **Paper**: Inception Transformer, arXiv 2205.12956.

    y = W (z + F * z), z = [gelu(K * W_1 x_1), gelu(W_2 max(x_2)), up(MHSA(mean(x_3)))], with x_1, x_2, x_3 groups of the channels,
    max over the k x k places around each, mean over cells of p x p places, up the way back; K and F are depthwise convolutions of
    k x k and 3 x 3, and W_1, W_2 double the channels.

    **Shape**: (B, C, H, W) or (B, N, C) with `grid=` -> the same, any H and W.

    **Cost**: time N^2 D / p^4 + N C (C + k^2); memory N C.

    **Args**:
        dim: channels C.
        attention_dim: D, channels of x_3, C - 2 at most; None = half of C, rounded down (the paper lets it grow with depth from 1/3 to
            11/12). The others are halved, x_2 one more where they are odd.
        pool_size: p, in places; 2, the paper's in its first two stages (1 later).
        num_heads: h, which divide D; None = one head per 32 channels of D, the paper's.
        kernel_size: k, in places, odd; 3, the paper's.
        qkv_bias: bias in q, k, v; on, the paper's.

    **Raises**: ValueError for an attention_dim that leaves no group of channels, a pool_size below 1, num_heads that do not divide D and
    a kernel_size that is not odd.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("inception_mixer", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: the GELUs and the doubling are those of its code; on sides that p does not divide the last cells are the
    means of the places they have; projections have biases.
    """

    card = Card(
        title="Inception mixer of iFormer", paper="2205.12956", year=2022, cost=(2, 1), needs_grid=True,
        sizes={"tiny": {"dim": 8, "num_heads": 2}, "base": {"dim": 64, "num_heads": 2},
               "odd": {"dim": 15, "attention_dim": 6, "num_heads": 3, "pool_size": 3, "kernel_size": 5, "qkv_bias": False}},
        differs="on sides that p does not divide the last cells are the means of the places they have; projections have biases")

    def __init__(
        self, dim: int, *, attention_dim: int | None = None, pool_size: int = 2, num_heads: int | None = None, kernel_size: int = 3,
        qkv_bias: bool = True,
    ):
        super().__init__(dim)
        check_count("pool_size", pool_size)
        check_odd("kernel_size", kernel_size)
        low = dim // 2 if attention_dim is None else attention_dim
        if not 1 <= low <= dim - 2:
            expected = f"1 to {dim - 2}, two channels less than dim"
            raise bad_value("attention_dim", got=low, expected=expected, do="The rest are convolved and pooled.")
        conv, pool = (dim - low) // 2, (dim - low + 1) // 2
        self.widths, self.pool_size, self.kernel_size = (conv, pool, low), pool_size, kernel_size
        self.expand = nn.Linear(conv, 2 * conv)
        self.conv = nn.Conv2d(2 * conv, 2 * conv, kernel_size, padding=kernel_size // 2, groups=2 * conv)
        self.pooled = nn.Linear(pool, 2 * pool)
        self.attention = MHSA(low, num_heads=num_heads, qkv_bias=qkv_bias)
        width = 2 * conv + 2 * pool + low
        self.fuse = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.proj = nn.Linear(width, dim)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        x1, x2, x3 = tokens.split(self.widths, -1)
        convolved = F.gelu(convolve(self.conv, self.expand(x1), grid, mask))
        pooled = F.gelu(self.pooled(self.max_pool(x2, grid, mask)))
        cells, real = pool_tokens(x3, grid, self.pool_size, mask)
        z = torch.cat((convolved, pooled, spread_tokens(self.attention(cells, real), grid, self.pool_size)), -1)
        return self.proj(z + convolve(self.fuse, z, grid, mask))

    def max_pool(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None) -> Tensor:
        """The largest of the real tokens around each place."""
        x = tokens if mask is None else tokens.masked_fill(~mask.unsqueeze(-1), float("-inf"))
        x = map_to_tokens(F.max_pool2d(as_map(x, grid), self.kernel_size, 1, self.kernel_size // 2))
        return x if mask is None else x.masked_fill(~mask.unsqueeze(-1), 0)  # where all around is masked
