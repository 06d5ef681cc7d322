"""MobileViT: local features by a convolution, then transformers that run over patches, one for each place in a patch."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.ffn.mlp import check_hidden
from layerzoo.layers.attention.mhsa import MHSA
from layerzoo.layers.base import TokenLayer, check_odd
from layerzoo.ops.token_maps import check_count, convolve, join_places, split_places


class MobileViT(TokenLayer):
    """MobileViT block: transformers as convolutions.

    **Paper**: MobileViT, arXiv 2110.02178.

    y = silu(K_2 * [x, silu(W_2 z)]), z = fold(LN(T_L(...T_1(unfold(W_1 silu(K_1 * x)))))): K_1, K_2 are k x k convolutions, unfold
    puts the places (i, j) of equal i mod p and j mod p in one sequence, and T_l are pre-norm transformers of width d over each of the p^2.

    **Shape**: (B, C, H, W) or (B, N, C) with `grid=` -> the same, any H and W.

    **Cost**: time L N^2 d / p^2 + L N d^2 + N C^2 k^2; memory N (L d + C).

    **Args**:
        dim: channels C.
        hidden_dim: d, of the transformers; None = 3/2 of C, the paper's.
        num_heads: h, which divide d; None = one head per 32 channels of d (the paper has 4 throughout).
        depth: L, transformers; 2, the paper's in its first stage (4 and 3 later).
        patch_size: p, in places; 2, the paper's.
        kernel_size: k, in places, odd; 3, the paper's.
        mlp_ratio: hidden channels of the MLPs over d; 2, the paper's.
        qkv_bias: bias in q, k, v; on, the paper's.

    **Raises**: ValueError for a depth or patch_size below 1, a kernel_size that is not odd, num_heads that do not divide d,
    and an mlp_ratio that leaves no hidden channel.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("mobilevit", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: no batch norm after the convolutions, which have biases in its place (folded, the same function);
    sides that p does not divide are padded by places nobody sees (there the map is resized).
    """

    card = Card(
        title="MobileViT block", paper="2110.02178", year=2021, cost=(2, 1), needs_grid=True,
        sizes={"tiny": {"dim": 8, "num_heads": 2}, "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 5, "hidden_dim": 6, "num_heads": 3, "depth": 1, "patch_size": 3, "kernel_size": 1, "qkv_bias": False}},
        differs="no batch norm after the convolutions, which have biases for it; sides that p does not divide are padded, not resized")

    def __init__(
        self, dim: int, *, hidden_dim: int | None = None, num_heads: int | None = None, depth: int = 2, patch_size: int = 2,
        kernel_size: int = 3, mlp_ratio: float = 2.0, qkv_bias: bool = True,
    ):
        super().__init__(dim)
        check_count("depth", depth)
        check_count("patch_size", patch_size)
        check_odd("kernel_size", kernel_size)
        hidden_dim = 3 * dim // 2 if hidden_dim is None else hidden_dim
        self.patch = patch_size, patch_size
        self.local = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2)
        self.widen = nn.Linear(dim, hidden_dim, bias=False)
        self.transformers = nn.ModuleList(Transformer(hidden_dim, num_heads, mlp_ratio, qkv_bias) for _ in range(depth))
        self.norm = nn.LayerNorm(hidden_dim)
        self.narrow = nn.Linear(hidden_dim, dim)
        self.fuse = nn.Conv2d(2 * dim, dim, kernel_size, padding=kernel_size // 2)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        z = self.widen(F.silu(convolve(self.local, tokens, grid, mask)))
        z, real = split_places(z, grid, self.patch, mask)
        batch, places = z.shape[:2]
        z, real = z.flatten(0, 1), None if real is None else real.flatten(0, 1)
        for transformer in self.transformers:
            z = transformer(z, real)
        z = join_places(self.norm(z).unflatten(0, (batch, places)), grid, self.patch)
        return F.silu(convolve(self.fuse, torch.cat((tokens, F.silu(self.narrow(z))), -1), grid, mask))


class Transformer(nn.Module):
    """x + MHSA(LN(x)), then x + W_2 silu(W_1 LN(x)), on tokens (B, N, dim)."""

    def __init__(self, dim: int, num_heads: int | None, mlp_ratio: float, qkv_bias: bool):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = MHSA(dim, num_heads=num_heads, qkv_bias=qkv_bias)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, check_hidden(mlp_ratio, dim * mlp_ratio))
        self.fc2 = nn.Linear(self.fc1.out_features, dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.attention(self.norm1(x), mask)
        return x + self.fc2(F.silu(self.fc1(self.norm2(x))))
