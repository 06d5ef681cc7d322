"""Conformer: a branch of convolutions and a branch of attention, each fed with the features of the other."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.attention.mhsa import MHSA
from layerzoo.layers.base import TokenLayer
from layerzoo.ops.token_maps import check_count, convolve, pool_tokens, spread_tokens


class Conformer(TokenLayer):
    """Feature coupling of local features and global representations: one ConvTrans unit, its branches two groups of the channels.

    **Paper**: Conformer, arXiv 2105.03889.

    y = [W_2 u + W_4 v, up(e + a)], x = [c, t], with

    - u = relu(K_1 * relu(W_1 c)), the first bottleneck of the convolution branch,
    - e = gelu(LN(W_d mean(u))), its features for the attention branch, means over cells of p x p places,
    - a = MHSA(LN(s + e)), s = mean(t), the attention branch, over the cells,
    - v = relu(K_2 * (relu(W_3 (c + W_2 u)) + up(relu(W_u (s + e + a))))), the second bottleneck, fed with the features of attention.

    K_1, K_2 are 3 x 3 convolutions, and up gives each place the features of its cell.

    **Shape**: (B, C, H, W) or (B, N, C) with `grid=` -> the same, any H and W.

    **Cost**: time N^2 D / p^4 + N C^2; memory N C.

    **Args**:
        dim: channels C.
        attention_dim: D, channels of t, C - 1 at most; None = half of C (the paper's smaller model has 384 beside 256 to 1024 of c).
        pool_size: p, in places; 2, the paper's in its second stage (4 before and 1 after).
        reduction: channels of c over those of a bottleneck; 4, the paper's.
        num_heads: h, which divide D; None = one head per 32 channels of D (the paper has 64 channels a head).
        qkv_bias: bias in q, k, v; on, the paper's.

    **Raises**: ValueError for an attention_dim that leaves a branch no channel, a pool_size or reduction below 1 and num_heads that do
    not divide D.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("conformer", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: its branches are two networks, here they share a map; no batch norm (biases in its place), class token or
    MLP, which is the block's; what is added to the input is returned, so that no relu follows the sums.
    """

    card = Card(
        title="Feature coupling of Conformer", paper="2105.03889", year=2021, cost=(2, 1), needs_grid=True,
        sizes={"tiny": {"dim": 8, "num_heads": 2, "reduction": 1}, "base": {"dim": 64, "num_heads": 2},
               "odd": {"dim": 13, "attention_dim": 6, "pool_size": 3, "reduction": 2, "num_heads": 3, "qkv_bias": False}},
        differs="its branches are two networks, here they share a map; no batch norm, class token or MLP; no relu follows the sums")

    def __init__(
        self, dim: int, *, attention_dim: int | None = None, pool_size: int = 2, reduction: int = 4, num_heads: int | None = None,
        qkv_bias: bool = True,
    ):
        super().__init__(dim)
        check_count("pool_size", pool_size)
        check_count("reduction", reduction)
        attention_dim = dim // 2 if attention_dim is None else attention_dim
        if not 1 <= attention_dim < dim:
            expected = f"1 to {dim - 1}, less than dim"
            raise bad_value("attention_dim", got=attention_dim, expected=expected, do="The rest are the convolution branch.")
        self.widths, self.pool_size = (dim - attention_dim, attention_dim), pool_size
        conv_dim, hidden = self.widths[0], max(1, self.widths[0] // reduction)
        self.into = nn.ModuleList(nn.Linear(conv_dim, hidden) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(hidden, hidden, 3, padding=1) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(hidden, conv_dim) for _ in range(2))
        self.down = nn.Linear(hidden, attention_dim)
        self.down_norm = nn.LayerNorm(attention_dim, eps=1e-6)
        self.norm = nn.LayerNorm(attention_dim, eps=1e-6)
        self.attention = MHSA(attention_dim, num_heads=num_heads, qkv_bias=qkv_bias)
        self.up = nn.Linear(attention_dim, hidden)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        c, t = tokens.split(self.widths, -1)
        u = F.relu(convolve(self.convs[0], F.relu(self.into[0](c)), grid, mask))
        local = self.out[0](u)
        s, real = pool_tokens(t, grid, self.pool_size, mask)
        a = F.gelu(self.down_norm(self.down(pool_tokens(u, grid, self.pool_size, mask)[0])))
        a = a + self.attention(self.norm(s + a), real)
        coupled = F.relu(self.into[1](c + local)) + spread_tokens(F.relu(self.up(s + a)), grid, self.pool_size)
        local = local + self.out[1](F.relu(convolve(self.convs[1], coupled, grid, mask)))
        return torch.cat((local, spread_tokens(a, grid, self.pool_size)), -1)
