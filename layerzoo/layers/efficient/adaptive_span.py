"""Adaptive span: every head learns how far it looks, and pays for it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import HeadsLayer
from layerzoo.ops.auxiliary import add_loss, collecting
from layerzoo.ops.segments import windows
from layerzoo.ops.sequence import real_first

SHORTEST_BLOCK = 16  # queries that share a folded window; fewer waste the kernel


class AdaptiveSpan(HeadsLayer):
    """Self-attention with a learned span for each head.

    **Paper**: Adaptive Attention Span in Transformers, arXiv 1905.07799.

    y_i = W_o concat_h(sum_j a_ij v_j), a_ij = m_h(|i - j|) exp(s_ij) / sum_j m_h(|i - j|) exp(s_ij), s_ij = q_i k_j / sqrt(d), over
    |i - j| < S, with m_h(x) = clamp((R + z_h - x) / R, 0, 1) and z_h = S clamp(spans_h, 0, 1).

    Outside of [0, 1] the gradient of `spans` passes the clamp, so that no head is stuck there. The auxiliary loss "span" is
    span_weight mean_h S max(spans_h, 0).

    **Shape**: (B, C, H, W) or (B, N, C) -> the same; a map is read row by row.

    **Cost**: time N C S + N C^2; memory N C + N h S: all S are computed, however short the spans.

    **Args**:
        dim: channels C.
        num_heads: h; None = one head per 32 channels.
        max_span: S, in tokens, on each side; 64, where the paper has up to 8192 of text.
        ramp_size: R, tokens over which the mask falls from 1 to 0; 32, the paper's.
        initial_span: of `spans`, as a share of S; 0, the paper's code: only the ramp is seen.
        span_weight: of the loss; 2e-6, the paper's code for its smaller models.
        qkv_bias: bias in q, k, v; off, as in the paper's code.
        causal: position i sees positions up to i, in row-major order, as in the paper.

    **Raises**: ValueError for a max_span or ramp_size below 1, an initial_span outside of [0, 1], and num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("adaptive_span", dim=64, max_span=16)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: to both sides, unless causal; a position sees itself at distance 0 (the paper's code: the one before it);
    no relative positions; `spans` is clamped in the formula, not after each step of the optimiser.
    """

    card = Card(
        title="Adaptive attention span", paper="1905.07799", year=2019, survey="FP", cost=(1, 1), causal=True, symmetry="translation",
        sizes={"tiny": {"dim": 8, "num_heads": 2, "max_span": 4, "ramp_size": 2, "initial_span": 0.5}, "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 15, "num_heads": 3, "max_span": 21, "ramp_size": 7, "qkv_bias": True}},
        limit={"equals": "mhsa", "options": {"max_span": 24, "qkv_bias": True}, "grid": (4, 6), "set": {"spans": "ones"}},
        differs="to both sides, unless causal; a position sees itself; no relative positions; spans are clamped in the formula")

    def __init__(
        self, dim: int, *, num_heads: int | None = None, max_span: int = 64, ramp_size: int = 32, initial_span: float = 0.0,
        span_weight: float = 2e-6, qkv_bias: bool = False, causal: bool = False,
    ):
        super().__init__(dim, num_heads, qkv_bias)
        for what, given in (("max_span", max_span), ("ramp_size", ramp_size)):
            if given < 1:
                raise bad_value(what, got=given, expected="a number >= 1 of tokens", do="Choose such as 64 and a ramp of 32.")
        if not 0 <= initial_span <= 1:
            raise bad_value("initial_span", got=initial_span, expected="a share of max_span, 0 to 1", do="Choose 0 to start with the ramp.")
        self.max_span, self.ramp_size, self.span_weight, self.causal = max_span, ramp_size, span_weight, causal
        self.spans = nn.Parameter(torch.full((self.num_heads,), float(initial_span)))

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        if collecting():
            add_loss("span", self.max_span * self.spans.relu().mean(), self.span_weight)
        return real_first(lambda packed, real: self.merge(self.mix_heads(packed, real)), tokens, mask)

    def mix_heads(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Heads (B, h, N, d) of tokens (B, N, C) whose real ones come first; blocks of queries with the keys they may need."""
        q, k, v = self.split(tokens)
        length = q.shape[2]
        before = min(self.max_span, length) - 1
        size, after = min(max(before, SHORTEST_BLOCK), length), 0 if self.causal else before
        k, v = (windows(t, size, before, after) for t in (k, v))
        q = F.pad(q, (0, 0, 0, -length % size)).unflatten(2, (-1, size))
        real = tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask
        asks = F.pad(real, (0, -length % size)).unflatten(1, (-1, size))
        visible = windows(real[..., None], size, before, after).mT | ~asks[..., None]  # padding sees anything rather than nothing
        scores = (q * self.head_dim**-0.5) @ k.mT + self.log_mask(size, before, after).unsqueeze(1)
        weights = scores.masked_fill(~visible.unsqueeze(1), float("-inf")).softmax(-1)
        return (weights.to(v.dtype) @ v).flatten(2, 3)[:, :, :length]

    def log_mask(self, size: int, before: int, after: int) -> Tensor:
        """log m (h, size, before + size + after): as the mask times the exponential, added to the scores."""
        rows, keys = (torch.arange(n, device=self.spans.device) for n in (size, before + size + after))
        distance = rows[:, None] + before - keys
        inside = (distance < self.max_span) & (distance >= 0 if self.causal else distance > -self.max_span)
        clamped = self.spans + (self.spans.clamp(0, 1) - self.spans).detach()
        m = ((self.ramp_size + self.max_span * clamped[:, None, None] - distance.abs()) / self.ramp_size).clamp(0, 1) * inside
        return torch.where(m > 0, m.clamp(min=torch.finfo(m.dtype).tiny).log(), float("-inf"))
