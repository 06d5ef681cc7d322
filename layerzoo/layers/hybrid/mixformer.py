"""MixFormer: window attention beside a depthwise convolution, which tells it about channels and is told about places."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.attention.window_attention import WindowAttention
from layerzoo.layers.base import TokenLayer, check_odd
from layerzoo.ops.token_maps import check_count, convolve, mean_token


class MixFormer(TokenLayer):
    """Mixing block: window attention and depthwise convolution in parallel, with interactions in both directions.

    **Paper**: MixFormer, Mixing Features across Windows and Dimensions, arXiv 2204.02557.

    y = W_o [LN(a), sigmoid(S(a)) W_c c], with

    - c = gelu(K * LN(W_1 x)), the convolution branch, K depthwise of k x k,
    - a = A(LN(W_2 x)) with values times sigmoid(Q(mean(c))), the attention branch: Q gates channels, A attends in windows of w x w,
    - S(a) = U_2 gelu(U_1 a), one number for each place, and Q = V_2 gelu(V_1 .).

    **Shape**: (B, C, H, W) or (B, N, C) with `grid=` -> the same, any H and W.

    **Cost**: time N C (w^2 + k^2 + C); memory N C + N w^2 h.

    **Args**:
        dim: channels C, of which the attention branch gives half, rounded down.
        window_size: w, in places; 7, the paper's.
        num_heads: h, which divide its channels; None = one head per 32 channels of these.
        kernel_size: k, in places, odd; 3, the paper's.
        reduction: channels C over the hidden ones of Q, half of which S has; 8, the paper's.
        qkv_bias: bias in q, k, v; on, the paper's.

    **Raises**: ValueError for a dim below 2, a window_size or reduction below 1, num_heads that do not divide dim // 2 and a
    kernel_size that is not odd.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("mixformer", dim=64)(torch.randn(2, 64, 9, 5)).shape
        torch.Size([2, 64, 9, 5])

    **Differs from the paper**: no batch norm after the convolution, in Q and S and after the product with S; padding of windows is seen by
    nobody (there it is attended as zeros).
    """

    card = Card(
        title="Mixing block of MixFormer", paper="2204.02557", year=2022, cost=(1, 1), needs_grid=True,
        sizes={"tiny": {"dim": 8, "num_heads": 2, "window_size": 4}, "base": {"dim": 64, "num_heads": 2},
               "odd": {"dim": 13, "num_heads": 3, "window_size": 3, "kernel_size": 5, "reduction": 4, "qkv_bias": False}},
        differs="no batch norm in the convolution branch and in the interactions; padding of windows is seen by nobody")

    def __init__(
        self, dim: int, *, window_size: int = 7, num_heads: int | None = None, kernel_size: int = 3, reduction: int = 8,
        qkv_bias: bool = True,
    ):
        super().__init__(dim)
        if dim < 2:
            raise bad_value("dim of MixFormer", got=dim, expected="2 or more, a half for each branch", do="Pass more channels.")
        check_odd("kernel_size", kernel_size)
        check_count("reduction", reduction)
        half, hidden = dim // 2, max(1, dim // reduction)
        self.conv_in, self.conv_norm = nn.Linear(dim, dim), nn.LayerNorm(dim)
        self.conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.conv_out = nn.Linear(dim, dim - half)
        self.attention_in, self.attention_norm = nn.Linear(dim, half), nn.LayerNorm(half)
        self.attention = WindowAttention(half, window_size=window_size, num_heads=num_heads, qkv_bias=qkv_bias)
        self.attention.proj = nn.Identity()  # the branches are projected together
        self.norm = nn.LayerNorm(half)
        self.channels = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, half))
        self.places = nn.Sequential(nn.Linear(half, max(1, hidden // 2)), nn.GELU(), nn.Linear(max(1, hidden // 2), 1))
        self.proj = nn.Linear(dim, dim)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        c = F.gelu(convolve(self.conv, self.conv_norm(self.conv_in(tokens)), grid, mask))
        a = self.attention(self.attention_norm(self.attention_in(tokens)), mask, grid)
        a = a * self.channels(mean_token(c, mask)).sigmoid()  # the same for all values of a sample, so for their means
        c = self.conv_out(c) * self.places(a).sigmoid()
        return self.proj(torch.cat((self.norm(a), c), -1))
