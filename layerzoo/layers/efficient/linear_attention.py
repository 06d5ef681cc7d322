"""Linear attention: positive features in place of the exponential, so that keys and values are summed before queries come."""

import torch
from torch import Tensor
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.layers.base import HeadsLayer
from layerzoo.ops.linear_recurrence import causal_linear_attention, full_precision, linear_attention, no_autocast, recurrent_step


class LinearAttention(HeadsLayer):
    """Multi-head linear attention.

    **Paper**: Transformers are RNNs, arXiv 2006.16236.

    y_i = W_o concat_h(phi(q_i) S / (phi(q_i) . z + eps)), S = sum_j phi(k_j) v_j^T, z = sum_j phi(k_j), phi(x) = elu(x) + 1;
    with causal the sums run over j <= i and `step` carries (S, z) from token to token.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same.

    **Cost**: time N C d + N C^2; memory N C.

    **Args**:
        dim: channels C.
        num_heads: h; None = one head per 32 channels.
        qkv_bias: bias in q, k, v; on, as in the paper's code.
        causal: position i sees positions up to i, in row-major order.
        eps: added to the normaliser; 1e-6, the paper's code.

    **Raises**: ValueError for num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("linear_attention", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: nothing; sums are taken in float32 at least.
    """

    card = Card(
        title="Linear attention", paper="2006.16236", year=2020, survey="KR", cost=(1, 1), causal=True, symmetry="permutation",
        sizes={"tiny": {"dim": 8, "num_heads": 2}, "base": {"dim": 64, "num_heads": 4}, "odd": {"dim": 15, "num_heads": 3, "qkv_bias": False}})

    def __init__(self, dim: int, *, num_heads: int | None = None, qkv_bias: bool = True, causal: bool = False, eps: float = 1e-6):
        super().__init__(dim, num_heads, qkv_bias)
        self.causal, self.eps = causal, eps

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        q, k, v = self.features(tokens)
        if mask is not None:
            k = k * mask[:, None, :, None]
        with no_autocast(tokens.device):
            y = (causal_linear_attention if self.causal else linear_attention)(q, k, v, self.eps)
        return self.merge(y.to(tokens.dtype))

    def step(self, token: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """One token (B, C) after those in `state`; None before the first. Equals the causal form, token by token."""
        q, k, v = (t.squeeze(2) for t in self.features(token.unsqueeze(1)))
        with no_autocast(token.device):
            y, state = recurrent_step(q, k, v, state, self.eps)
        return self.merge(y.unsqueeze(2).to(token.dtype)).squeeze(1), state

    def features(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """phi(q), phi(k) and v, each (B, h, N, d)."""
        q, k, v = full_precision(*self.split(tokens))
        return F.elu(q) + 1, F.elu(k) + 1, v
