"""Random feature attention: sines and cosines of random projections estimate a Gaussian kernel, and a gate may forget the past."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import HeadsLayer
from layerzoo.layers.efficient.performer import orthogonal_gaussian
from layerzoo.ops.gated_recurrence import gated_sums
from layerzoo.ops.linear_recurrence import causal_sums, full_precision, no_autocast


class RandomFeatureAttention(HeadsLayer):
    """Random feature attention (RFA), and RFA-Gate.

    **Paper**: Random Feature Attention, arXiv 2103.02143.

    y_i = W_o concat_h(sum_j a_j c_ij v_j / max(sum_j a_j c_ij, eps sum_j a_j)), c_ij = phi(q_i) . phi(k_j), with q, k of length one and
    phi(x) = D^(-1/2) [sin(w_r . s x), cos(w_r . s x)], r = 1 ... D, s learned. The mean of c_ij is exp(-|s (q_i - k_j)|^2 / 2), which for
    equal s is softmax attention with scores s^2 q_i . k_j; c_ij itself may be negative, hence the bound. All a_j are 1, unless gated:
    S_t = g_t S_(t-1) + (1 - g_t) phi(k_t) v_t^T, g = sigmoid(W_g x + b), one gate per head, has a_j = (1 - g_j) g_(j+1) ... g_i.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same.

    **Cost**: time 4 N C D + N C^2; memory 4 N h D + N C.

    **Args**:
        dim: channels C.
        num_heads: h; None = one head per 32 channels.
        num_features: D, random directions; 64, the paper's code.
        temperature: s starts at temperature^(-1/2); 1, the paper's code.
        qkv_bias: bias in q, k, v; on, as in the paper's code.
        causal: position i sees positions up to i, in row-major order.
        gated: forget the past by a learned gate; off. Its bias starts at 4: half is forgotten after some 40 tokens.
        eps: least mean of c_ij; 0.1, below exp(-2), the least it can be at temperature 1 but for the error of the estimate.

    **Raises**: ValueError for num_features, temperature or eps not above 0, gated without causal, num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("random_feature_attention", dim=64, causal=True, gated=True)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: the bound of the normaliser grows with the tokens seen (the paper's code has a constant); directions are
    orthogonal in blocks, and `redraw()` draws new ones when called (the paper takes others of a fixed set for every batch).
    """

    card = Card(
        title="Random feature attention", paper="2103.02143", year=2021, survey="KR", cost=(1, 1), causal=True, symmetry="permutation",
        sizes={"tiny": {"dim": 8, "num_heads": 2, "num_features": 16}, "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 15, "num_heads": 3, "num_features": 31, "temperature": 2.0, "qkv_bias": False}},
        differs="the bound of the normaliser grows with the tokens seen; directions are orthogonal in blocks, and stay until redraw()")

    def __init__(
        self, dim: int, *, num_heads: int | None = None, num_features: int = 64, temperature: float = 1.0, qkv_bias: bool = True,
        causal: bool = False, gated: bool = False, eps: float = 0.1,
    ):
        super().__init__(dim, num_heads, qkv_bias)
        for what, given, default in (("num_features", num_features, 64), ("temperature", temperature, 1), ("eps", eps, 0.1)):
            if given <= 0:
                raise bad_value(what, got=given, expected="a number above 0", do=f"The default is {default}.")
        if gated and not causal:
            raise bad_value("gated", got=True, expected="False where the past has no order", do="Pass causal=True with it.")
        self.num_features, self.causal, self.eps = num_features, causal, eps
        self.scale = nn.Parameter(torch.full((dim,), temperature**-0.5))
        self.register_buffer("directions", torch.empty(self.num_heads, num_features, self.head_dim))
        self.redraw()
        self.gate = nn.Linear(dim, self.num_heads) if gated else None
        if gated:
            nn.init.constant_(self.gate.bias, 4.0)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        (q, k, v), (log_gate, share) = self.features(tokens), self.gates(tokens, mask)
        with no_autocast(tokens.device):
            v = v * share.unsqueeze(-1)
            if not self.causal:
                y, seen = q @ (k.mT @ v), share.sum(-1, keepdim=True)
            elif self.gate is None:
                y, seen = causal_sums(q, k, v), share.cumsum(-1)
            else:
                y, seen = gated_sums(q, k, v, log_gate), -log_gate.cumsum(-1).expm1()
        return self.merge(self.normalised(y, seen.unsqueeze(-1)).to(tokens.dtype))

    def step(self, token: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """One token (B, C) after those in `state`; None before the first. Equals the causal form, token by token."""
        token = token.unsqueeze(1)
        (q, k, v), (log_gate, share) = self.features(token), (t.unsqueeze(-1) for t in self.gates(token, None))
        with no_autocast(token.device):
            sums, seen = k.mT @ (v * share), share
            if state is not None:
                sums, seen = (log_gate.exp() * past + new for past, new in zip(state, (sums, seen)))
            y = self.normalised(q @ sums, seen)
        return self.merge(y.to(token.dtype)).squeeze(1), (sums, seen)

    @torch.no_grad()
    def redraw(self) -> None:
        """Draw the random directions anew, others for each head."""
        self.directions.copy_(torch.stack([orthogonal_gaussian(self.num_features, self.head_dim) for _ in range(self.num_heads)]))

    def features(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features of queries and keys (B, h, N, 2 D), without D^(-1/2), and values over D with a column of ones (B, h, N, d + 1)."""
        q, k, v, scale, w = full_precision(*self.split(tokens), self.scale, self.directions)
        with no_autocast(tokens.device):
            w = (w * scale.unflatten(0, (self.num_heads, 1, -1))).mT
            q, k = (torch.cat([a.sin(), a.cos()], -1) for a in (F.normalize(t, dim=-1, eps=1e-3) @ w for t in (q, k)))
        return q, k, F.pad(v, (0, 1), value=1.0) / self.num_features

    def gates(self, tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """log g and a factor 1 - g of the values (B, h, N), 0 and 1 without a gate. Masked tokens neither forget nor add."""
        real = torch.ones_like(tokens[..., 0], dtype=torch.bool) if mask is None else mask
        if self.gate is None:
            (share,) = full_precision(real.unsqueeze(1).to(tokens.dtype))
            return torch.zeros_like(share), share
        (score,) = full_precision(self.gate(tokens).mT.masked_fill(~real.unsqueeze(1), torch.inf))
        return F.logsigmoid(score), (-score).sigmoid()

    def normalised(self, sums: Tensor, seen: Tensor) -> Tensor:
        return sums[..., :-1] / torch.maximum(sums[..., -1:], (self.eps * seen).clamp(min=1e-12))
