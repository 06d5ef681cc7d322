"""Performer: softmax attention approximated by positive random features, in linear time."""

import math

import torch
from torch import Tensor

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import HeadsLayer
from layerzoo.ops.linear_recurrence import causal_linear_attention, full_precision, linear_attention, no_autocast, recurrent_step


class Performer(HeadsLayer):
    """FAVOR+: an unbiased, positive estimate of softmax attention.

    **Paper**: Rethinking Attention with Performers, arXiv 2009.14794.

    exp(q . k / sqrt(d)) = E_w[phi_w(q) phi_w(k)], phi_w(x) = exp(w . x' - |x'|^2 / 2), x' = x d^(-1/4), w ~ N(0, I); the mean runs
    over m block-orthogonal w, and y = phi(q) (phi(K)^T V) / (phi(q) . sum phi(K)). A query's features are divided by their
    largest, a sample's keys by theirs, as by constants: both cancel.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same.

    **Cost**: time N C m + N C^2; memory N h m + N C.

    **Args**:
        dim: channels C.
        num_heads: h; None = one head per 32 channels.
        num_features: m; None = d ln d, the paper's code.
        qkv_bias: bias in q, k, v; on, as in ViT.
        causal: position i sees positions up to i, in row-major order.
        eps: added to every feature, against division by zero; 1e-4, the paper's code.

    **Raises**: ValueError for num_features below 1 and for num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("performer", dim=64, num_features=32)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: `redraw()` draws new features when called, not by itself every 1000 steps. With causal the keys are
    scaled by a constant in place of their largest, which would let the past see the future.
    """

    card = Card(
        title="Performer (FAVOR+)", paper="2009.14794", year=2020, survey="KR", cost=(1, 1), causal=True, symmetry="permutation",
        sizes={"tiny": {"dim": 8, "num_heads": 2, "num_features": 6}, "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 15, "num_heads": 3, "num_features": 7}},
        limit={"equals": "mhsa", "options": {"eps": 0.0, "num_heads": 4}, "equals_options": {"num_heads": 4}, "grid": (4, 6),
               "sweep": "num_features", "values": [64, 256, 1024], "rate": 0.5},
        differs="redraw() draws new features when called, not by itself; causal keys are scaled by a constant, not by their largest")

    def __init__(
        self, dim: int, *, num_heads: int | None = None, num_features: int | None = None, qkv_bias: bool = True, causal: bool = False,
        eps: float = 1e-4,
    ):
        super().__init__(dim, num_heads, qkv_bias)
        if num_features is not None and num_features < 1:
            raise bad_value("num_features", got=num_features, expected="a whole number >= 1", do="Leave it out for d ln d.")
        self.causal, self.eps = causal, eps
        self.num_features = num_features or max(1, int(self.head_dim * math.log(self.head_dim)))
        self.register_buffer("directions", orthogonal_gaussian(self.num_features, self.head_dim))

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        q, k, v = full_precision(*self.split(tokens))
        with no_autocast(tokens.device):
            q, k = self.query_features(q), self.key_features(k, mask)
            y = (causal_linear_attention if self.causal else linear_attention)(q, k, v, _TINY)
        return self.merge(y.to(tokens.dtype))

    def step(self, token: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """One token (B, C) after those in `state`; None before the first. Equals the causal form, token by token."""
        q, k, v = full_precision(*self.split(token.unsqueeze(1)))
        with no_autocast(token.device):
            q, k = self.query_features(q), self.key_features(k, None)
            y, state = recurrent_step(q.squeeze(2), k.squeeze(2), v.squeeze(2), state, _TINY)
        return self.merge(y.unsqueeze(2).to(token.dtype)).squeeze(1), state

    @torch.no_grad()
    def redraw(self) -> None:
        """Draw the random directions anew."""
        self.directions.copy_(orthogonal_gaussian(self.num_features, self.head_dim))

    def query_features(self, q: Tensor) -> Tensor:
        """phi(q) (B, h, N, m), the largest of each query 1."""
        exponent = self._exponent(q)
        return exponent.sub_(exponent.detach().amax(-1, keepdim=True)).exp() + self.eps

    def key_features(self, k: Tensor, mask: Tensor | None) -> Tensor:
        """phi(k) (B, h, N, m), zero for masked keys; unless causal, the largest of each sample and head 1."""
        exponent = self._exponent(k)
        real = None if mask is None else mask[:, None, :, None]
        if real is not None:
            exponent = exponent.masked_fill(~real, torch.finfo(exponent.dtype).min)
        if not self.causal:
            exponent = exponent.sub_(exponent.detach().amax((-2, -1), keepdim=True))
        features = exponent.exp() + self.eps
        return features if real is None else features.masked_fill(~real, 0)

    def _exponent(self, x: Tensor) -> Tensor:
        scale = self.head_dim**-0.25
        return (x @ (self.directions * scale).T.to(x.dtype)).sub_(x.square().sum(-1, keepdim=True) * (scale**2 / 2))


_TINY = 1e-12  # keeps a sample without real keys at 0 instead of 0 / 0


def orthogonal_gaussian(count: int, dim: int) -> Tensor:
    """(count, dim): rows of Gaussian length, orthogonal within each block of `dim` rows."""
    q, r = torch.linalg.qr(torch.randn(-(-count // dim), dim, dim))
    q = q * r.diagonal(dim1=1, dim2=2).sign().unsqueeze(1)  # without the signs of R, Q is not uniform and the estimate is biased
    return q.flatten(0, 1)[:count] * torch.randn(count, dim).norm(dim=1, keepdim=True)
