"""MobileViTv2: transformers over patches whose attention costs linear time, one context score per token."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.ffn.mlp import check_hidden
from layerzoo.layers.base import TokenLayer, check_odd
from layerzoo.ops.token_maps import check_count, convolve, join_places, norm_sample, split_places


class SeparableMobileViT(TokenLayer):
    """MobileViTv2 block: separable self-attention across patches.

    **Paper**: Separable Self-attention for Mobile Vision Transformers, arXiv 2206.02680.

    y = W_2 fold(GN(T_L(...T_1(unfold(W_1 silu(K * x)))))), K a depthwise k x k convolution, unfold as in MobileViT: p^2 sequences of the
    places that are equal mod p. T_l adds A(GN(z)) and then an MLP of GN(z), and A(z)_i = W_o (relu(v_i) c), c = sum_j softmax_j(s_j) k_j
    elementwise: keys k, values v and scores s are linear in z, with one score per token.

    **Shape**: (B, C, H, W) or (B, N, C) with `grid=` -> the same, any H and W.

    **Cost**: time L N d^2 + N C (d + k^2); memory N (L d + C).

    **Args**:
        dim: channels C.
        hidden_dim: d, of the transformers; None = half of C, the paper's.
        depth: L, transformers; 2, the paper's in its first stage (4 and 3 later).
        patch_size: p, in places; 2, the paper's.
        kernel_size: k, in places, odd; 3, the paper's.
        mlp_ratio: hidden channels of the MLPs over d; 2, the paper's.

    **Raises**: ValueError for a depth, patch_size or hidden_dim below 1, a kernel_size that is not odd and an mlp_ratio that leaves
    no hidden channel.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("mobilevit_v2", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: no batch norm after the convolutions, which have biases in its place (folded, the same function);
    sides that p does not divide are padded by places nobody sees (there the map is resized), not even the group norm GN.
    """

    card = Card(
        title="MobileViTv2 block", paper="2206.02680", year=2022, cost=(1, 1), needs_grid=True,
        sizes={"tiny": {"dim": 8}, "base": {"dim": 64},
               "odd": {"dim": 5, "hidden_dim": 3, "depth": 1, "patch_size": 3, "kernel_size": 1, "mlp_ratio": 1.5}},
        differs="no batch norm after the convolutions, which have biases for it; sides that p does not divide are padded, not resized")

    def __init__(
        self, dim: int, *, hidden_dim: int | None = None, depth: int = 2, patch_size: int = 2, kernel_size: int = 3, mlp_ratio: float = 2.0,
    ):
        super().__init__(dim)
        hidden_dim = max(1, dim // 2) if hidden_dim is None else hidden_dim
        for what, count in (("depth", depth), ("patch_size", patch_size), ("hidden_dim", hidden_dim)):
            check_count(what, count)
        check_odd("kernel_size", kernel_size)
        self.patch = patch_size, patch_size
        self.local = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.inward = nn.Linear(dim, hidden_dim, bias=False)
        self.transformers = nn.ModuleList(SeparableTransformer(hidden_dim, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(hidden_dim)
        self.outward = nn.Linear(hidden_dim, dim)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        z = self.inward(F.silu(convolve(self.local, tokens, grid, mask)))
        z, real = split_places(z, grid, self.patch, mask)
        for transformer in self.transformers:
            z = transformer(z, real)
        return self.outward(join_places(norm_sample(z, self.norm, real), grid, self.patch))


class SeparableTransformer(nn.Module):
    """z + A(GN(z)), then z + W_2 silu(W_1 GN(z)), on groups of tokens (B, groups, n, dim)."""

    def __init__(self, dim: int, mlp_ratio: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)  # holds the weights of a group norm
        self.qkv = nn.Linear(dim, 1 + 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, check_hidden(mlp_ratio, dim * mlp_ratio))
        self.fc2 = nn.Linear(self.fc1.out_features, dim)

    def forward(self, z: Tensor, real: Tensor | None) -> Tensor:
        z = z + self.attend(norm_sample(z, self.norm1, real), real)
        return z + self.fc2(F.silu(self.fc1(norm_sample(z, self.norm2, real))))

    def attend(self, z: Tensor, real: Tensor | None) -> Tensor:
        """A(z), within each group."""
        scores, k, v = self.qkv(z).split((1, z.shape[-1], z.shape[-1]), -1)
        if real is not None:
            scores = scores.masked_fill(~real.unsqueeze(-1), torch.finfo(scores.dtype).min)
        context = scores.softmax(-2).to(k.dtype).mT @ k
        return self.proj(v.relu() * context)
