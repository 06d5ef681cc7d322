"""cosFormer: linear attention whose weights fall with distance as a cosine."""

import math

import torch
from torch import Tensor

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import HeadsLayer
from layerzoo.ops.linear_recurrence import causal_linear_attention, full_precision, linear_attention, no_autocast, recurrent_step


class CosFormer(HeadsLayer):
    """Linear attention with a cosine locality.

    **Paper**: cosFormer, arXiv 2202.08791.

    y_i = W_o concat_h(sum_j w_ij v_j / sum_j w_ij), w_ij = relu(q_i) . relu(k_j) cos(pi/2 (i - j) / M). The cosine of a difference
    splits into cosines and sines of i and of j, so that keys and values are summed first. M is the number of real tokens, or
    max_length if that is larger. With causal the sums run over j <= i, and `step` carries them from token to token.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same.

    **Cost**: time 2 N C d + N C^2; memory N C.

    **Args**:
        dim: channels C.
        num_heads: h; None = one head per 32 channels.
        qkv_bias: bias in q, k, v; on, as in the paper's code.
        causal: position i sees positions up to i, in row-major order.
        max_length: smallest M in tokens; 0, so that M is the length, the paper's. `step` needs it, since it knows no length.
        eps: added to the normaliser; 1e-6, the paper's code.

    **Raises**: ValueError for a negative max_length and for num_heads that do not divide dim; in `step` from token max_length on.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("cosformer", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: nothing; sums are taken in float32 at least.
    """

    card = Card(
        title="cosFormer", paper="2202.08791", year=2022, cost=(1, 1), causal=True,
        sizes={"tiny": {"dim": 8, "num_heads": 2, "max_length": 130}, "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 15, "num_heads": 3, "qkv_bias": False, "max_length": 200}})

    def __init__(
        self, dim: int, *, num_heads: int | None = None, qkv_bias: bool = True, causal: bool = False, max_length: int = 0, eps: float = 1e-6,
    ):
        super().__init__(dim, num_heads, qkv_bias)
        if max_length < 0:
            raise bad_value("max_length", got=max_length, expected="a number of tokens, or 0", do="Pass the longest sequence for `step`.")
        self.causal, self.max_length, self.eps = causal, max_length, eps

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        real = torch.ones(1, tokens.shape[1], dtype=torch.bool, device=tokens.device) if mask is None else mask
        place, span = real.cumsum(1) - 1, real.sum(1, keepdim=True).clamp(min=max(self.max_length, 1))
        q, k, v = self.features(tokens, (place / span)[:, None, :, None])
        if mask is not None:
            k = k * mask[:, None, :, None]
        with no_autocast(tokens.device):
            y = (causal_linear_attention if self.causal else linear_attention)(q, k, v, self.eps)
        return self.merge(y.to(tokens.dtype))

    def step(self, token: Tensor, state: tuple[Tensor, Tensor, int] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor, int]]:
        """One token (B, C) after those in `state`; None before the first. Equals the causal form, token by token."""
        place = 0 if state is None else state[2]
        if place >= self.max_length:
            expected = f"at most max_length = {self.max_length} tokens"
            raise bad_value("step", got=f"token {place + 1}", expected=expected, do="Construct the layer with a larger max_length.")
        q, k, v = (t.squeeze(2) for t in self.features(token.unsqueeze(1), token.new_tensor(place / self.max_length)))
        with no_autocast(token.device):
            y, sums = recurrent_step(q, k, v, None if state is None else state[:2], self.eps)
        return self.merge(y.unsqueeze(2).to(token.dtype)).squeeze(1), (*sums, place + 1)

    def features(self, tokens: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weighted features of queries and keys (B, h, N, 2d), and values; `share` is the place over M."""
        q, k, v = full_precision(*self.split(tokens))
        angle = math.pi / 2 * share.to(q.dtype)
        q, k = (torch.cat((t.relu() * angle.cos(), t.relu() * angle.sin()), -1) for t in (q, k))
        return q, k, v
