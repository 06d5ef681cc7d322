"""Differential attention: the difference of two softmax maps, so that what both see alike cancels."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import HeadsLayer, check_heads
from layerzoo.ops.attention import attend


class DifferentialAttention(HeadsLayer):
    """Multi-head differential attention.

    **Paper**: Differential Transformer, arXiv 2410.05258.

    y = W_o concat_h((1 - a) RMSNorm((softmax(q_1 k_1^T / sqrt(d)) - l softmax(q_2 k_2^T / sqrt(d))) v)): the two halves of the queries
    and keys of a head, of d channels each, over values of 2 d channels; l = exp(u_1 . w_1) - exp(u_2 . w_2) + a, with u and w learned
    vectors of d channels and a = lambda_init. l and the gain of RMSNorm are the same for all heads.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same.

    **Cost**: time N^2 C + N C^2, the first twice that of plain attention; memory N C.

    **Args**:
        dim: channels C, even.
        num_heads: h, heads of 2 d channels; None = one per 64 channels, so that d = 32, since the paper halves the heads.
        lambda_init: a; 0.8, which the paper finds to do almost as well as its own, 0.8 - 0.6 exp(-0.3 (n - 1)) in its n-th layer.
        qkv_bias: bias in q, k, v; off, the paper's.
        causal: position i sees positions up to i, in row-major order.

    **Raises**: ValueError for num_heads that do not divide dim into even parts.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("differential_attention", dim=64, num_heads=2)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: a does not depend on the depth unless given; the output projection has a bias; no rotary positions.
    """

    card = Card(
        title="Differential attention", paper="2410.05258", year=2024, cost=(2, 1), causal=True, symmetry="permutation",
        sizes={"tiny": {"dim": 8, "num_heads": 2}, "base": {"dim": 64, "num_heads": 2},
               "odd": {"dim": 18, "num_heads": 3, "lambda_init": 0.2, "qkv_bias": True}},
        differs="lambda_init does not depend on the depth unless given; the output projection has a bias; no rotary positions")

    def __init__(
        self, dim: int, *, num_heads: int | None = None, lambda_init: float = 0.8, qkv_bias: bool = False, causal: bool = False,
    ):
        super().__init__(dim, check_heads(dim // 2, None) if num_heads is None else num_heads, qkv_bias)
        if self.head_dim % 2:
            heads = f"{dim} channels in {self.num_heads} heads"
            raise bad_value("num_heads", got=heads, expected="an even number of channels in each", do="A head has two halves.")
        self.lambda_init, self.causal = lambda_init, causal
        self.lambda_vectors = nn.Parameter(0.1 * torch.randn(2, 2, self.head_dim // 2))  # (u, w) of each map
        self.norm = nn.RMSNorm(self.head_dim, eps=1e-5)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        q, k, v = self.split(tokens)
        half = self.head_dim // 2
        q = q * 2**0.5  # scores are divided by the root of all channels of a head, of which the zeros below leave half
        first, second = F.pad(q[..., :half], (0, half)), F.pad(q[..., half:], (half, 0))
        y = attend(first, k, v, mask, causal=self.causal) - self.share().to(v.dtype) * attend(second, k, v, mask, causal=self.causal)
        y = F.rms_norm(y, (self.head_dim,), self.norm.weight.to(y.dtype), self.norm.eps)  # one dtype, or the kernel is not fused
        return self.merge((1 - self.lambda_init) * y)

    def share(self) -> Tensor:
        """l, how much of the second map is taken away."""
        first, second = (self.lambda_vectors[:, 0] * self.lambda_vectors[:, 1]).sum(-1).exp()
        return first - second + self.lambda_init
