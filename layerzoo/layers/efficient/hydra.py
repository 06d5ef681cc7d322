"""Hydra attention: as many heads as channels, so that attention is one sum over positions."""

from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.layers.base import TokenLayer
from layerzoo.ops.linear_recurrence import full_precision, no_autocast


class Hydra(TokenLayer):
    """Linear attention with one head per channel.

    **Paper**: Hydra Attention, arXiv 2209.07484.

    y_i = W_o (phi(q_i) * sum_j phi(k_j) * v_j), phi(x) = x / |x|, with * by channel; with causal the sum runs over j <= i and `step`
    carries it from token to token.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same.

    **Cost**: time N C + N C^2 for the projections; memory N C.

    **Args**:
        dim: channels C.
        qkv_bias: bias in q, k, v; on, as in ViT.
        causal: position i sees positions up to i, in row-major order.

    **Raises**: nothing of its own.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("hydra", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: nothing; sums are taken in float32 at least. The causal form is not in the paper.
    """

    card = Card(
        title="Hydra attention", paper="2209.07484", year=2022, cost=(1, 1), causal=True, symmetry="permutation",
        sizes={"tiny": {"dim": 8}, "base": {"dim": 64}, "odd": {"dim": 15, "qkv_bias": False}}, differs="the causal form is not in the paper")

    def __init__(self, dim: int, *, qkv_bias: bool = True, causal: bool = False):
        super().__init__(dim)
        self.causal = causal
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        q, pairs = self.features(tokens)
        if mask is not None:
            pairs = pairs * mask.unsqueeze(-1)
        with no_autocast(tokens.device):
            y = q * (pairs.cumsum(1) if self.causal else pairs.sum(1, keepdim=True))
        return self.proj(y.to(tokens.dtype))

    def step(self, token: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One token (B, C) after those whose sum (B, C) is `state`; None before the first. Equals the causal form, token by token."""
        q, pairs = self.features(token)
        with no_autocast(token.device):
            state = pairs if state is None else state + pairs
            return self.proj((q * state).to(token.dtype)), state

    def features(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """phi(q) and phi(k) * v of tokens (..., C)."""
        q, k, v = full_precision(*self.qkv(tokens).chunk(3, -1))
        return F.normalize(q, dim=-1), F.normalize(k, dim=-1) * v
