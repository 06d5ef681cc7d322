"""Perceiver: a few learned latents read all positions, attend to each other, and are read by every position."""

import torch
from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.ffn.mlp import MLP
from layerzoo.layers.attention.mhsa import MHSA
from layerzoo.layers.base import TokenLayer, check_heads
from layerzoo.ops.attention import attend


class Perceiver(TokenLayer):
    """Attention through k latents of width D, which have a transformer of their own.

    **Paper**: Perceiver, arXiv 2103.03206; reading the latents back as in Perceiver IO, arXiv 2107.14795.

    y = A(x, n(Z)), where Z is L + A(n(L), x) after an MLP block and `depth` times a self-attention block and an MLP block. A block is
    Z <- Z + f(n(Z)), n a layer norm, L (k, D) learned, and A(a, b) = W_o concat_h(softmax(q_h k_h^T / sqrt(d)) v_h), q from a, k and v from b.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same.

    **Cost**: time N (k D + C D) + depth (k^2 D + k D^2); memory N D + k D.

    **Args**:
        dim: channels C.
        num_latents: k; 64, where the paper has 512 for 50176 pixels.
        latent_dim: channels D of the latents; None = dim.
        depth: self-attention blocks of the latents; 2, where the paper has 6 in a model of one to eight such layers.
        num_heads: h, of the latent width; None = one head per 32 channels of it.
        mlp_ratio: hidden channels of the MLP blocks over D; 1, the paper's code.
        qkv_bias: bias in queries, keys and values; on, as in the paper's code.

    **Raises**: ValueError for num_latents or latent_dim below 1, depth below 0, num_heads that do not divide latent_dim, and an
    mlp_ratio that leaves no hidden channel.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("perceiver", dim=64, num_latents=16)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: one reading in one layer, without the repeated readings that share weights in the paper's whole model,
    and back to a map instead of to a mean of latents. No Fourier positions, as positions are the model's; x is not normalised here,
    as a block does it; all attention has h heads of the width D (the paper: one head, of the width C, where latents read x).
    """

    card = Card(
        title="Perceiver", paper="2103.03206", year=2021, survey="M+DS", cost=(1, 1), symmetry="permutation",
        sizes={"tiny": {"dim": 8, "num_latents": 3, "depth": 1, "num_heads": 2}, "base": {"dim": 64, "num_latents": 32, "num_heads": 4},
               "odd": {"dim": 15, "num_latents": 5, "latent_dim": 12, "num_heads": 3, "mlp_ratio": 2.5, "qkv_bias": False}},
        differs="a layer: one reading, latent blocks, back to the map as in Perceiver IO; no repeated readings or Fourier positions; heads of the latent width")

    def __init__(
        self, dim: int, *, num_latents: int = 64, latent_dim: int | None = None, depth: int = 2, num_heads: int | None = None, mlp_ratio: float = 1.0,
        qkv_bias: bool = True,
    ):
        super().__init__(dim)
        width = dim if latent_dim is None else latent_dim
        for what, given, least in (("num_latents", num_latents, 1), ("latent_dim", width, 1), ("depth", depth, 0)):
            if given < least:
                raise bad_value(what, got=given, expected=f"a whole number >= {least}", do="Choose latents such as 64, of width dim and depth 2.")
        self.num_heads = check_heads(width, num_heads)
        self.latents = nn.Parameter(nn.init.trunc_normal_(torch.empty(num_latents, width), std=0.02))  # the paper's
        self.read_norm = nn.LayerNorm(width)
        self.read_q, self.read_kv = nn.Linear(width, width, bias=qkv_bias), nn.Linear(dim, 2 * width, bias=qkv_bias)
        self.read_proj = nn.Linear(width, width)
        blocks = [MLP(width, mlp_ratio=mlp_ratio)]
        for _ in range(depth):
            blocks += MHSA(width, num_heads=self.num_heads, qkv_bias=qkv_bias), MLP(width, mlp_ratio=mlp_ratio)
        self.blocks = nn.ModuleList(blocks)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in blocks)
        self.write_norm = nn.LayerNorm(width)
        self.write_q, self.write_kv = nn.Linear(dim, width, bias=qkv_bias), nn.Linear(width, 2 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, dim)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        asking = self.read_q(self.read_norm(self.latents)).expand(len(tokens), -1, -1)
        latents = self.latents + self.read_proj(self._cross(asking, self.read_kv(tokens), mask))
        for norm, block in zip(self.norms, self.blocks):
            latents = latents + block(norm(latents))
        return self.proj(self._cross(self.write_q(tokens), self.write_kv(self.write_norm(latents))))

    def _cross(self, q: Tensor, kv: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attention of queries (B, n, D) to m keys and values (B, m, 2 D), heads joined: (B, n, D)."""
        q = q.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = kv.unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return attend(q, k, v, mask).transpose(1, 2).flatten(2)
