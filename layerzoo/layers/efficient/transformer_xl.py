"""Transformer-XL: the sequence in segments, each of which also sees a memory of the tokens before it, by relative positions."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import HeadsLayer
from layerzoo.ops.attention import attend
from layerzoo.ops.segments import scores_by_distance, sinusoid, windows
from layerzoo.ops.sequence import real_first


class TransformerXL(HeadsLayer):
    """Segment-level recurrence with relative positions.

    **Paper**: Transformer-XL, arXiv 1901.02860.

    y_i = W_o concat_h(sum_j softmax_j((q_i k_j + q_i W_r R_{i-j} + u k_j + v W_r R_{i-j}) / sqrt(d)) v_j), j over the segment of i and
    the m tokens before it, through which no gradient flows to x; u and v learned for each head, R_t = [sin(t w), cos(t w)].

    **Shape**: (B, C, H, W) or (B, N, C) -> the same; a map is read row by row.

    **Cost**: time N C (n + m) + N C^2 (1 + m / n) for segments of n tokens; memory N (C + h (n + m)).

    **Args**:
        dim: channels C.
        num_heads: h; None = one head per 32 channels.
        segment_length: n, in tokens; 64, so that 14 x 14 tokens make four segments (the paper has 128 to 512 of text).
        memory_length: m, in tokens; 64, as in the paper as many as in a segment.
        causal: position i sees positions up to i, in row-major order; without it a whole segment, and still the past alone beside it.

    **Raises**: ValueError for a segment_length below 1, a memory_length below 0, and num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("transformer_xl", dim=64, segment_length=16)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: the memory holds this layer's own earlier inputs, in one pass over all segments; `extend` goes segment by
    segment, with the memory as argument and result. Causal is an option.
    """

    card = Card(
        title="Transformer-XL attention", paper="1901.02860", year=2019, survey="RC", cost=(1, 1), causal=True,
        sizes={"tiny": {"dim": 8, "num_heads": 2, "segment_length": 8, "memory_length": 5},
               "base": {"dim": 64, "num_heads": 4, "segment_length": 16},
               "odd": {"dim": 15, "num_heads": 3, "segment_length": 3, "memory_length": 7}},
        limit={"equals": "mhsa", "options": {"segment_length": 24}, "equals_options": {"qkv_bias": False}, "grid": (4, 6),
               "set": {"position.weight": "zeros", "content_bias": "zeros"}},
        differs="the memory holds this layer's own earlier inputs, in one pass over all segments; causal is an option")

    def __init__(
        self, dim: int, *, num_heads: int | None = None, segment_length: int = 64, memory_length: int = 64, causal: bool = False,
    ):
        super().__init__(dim, num_heads, qkv_bias=False)
        if segment_length < 1:
            raise bad_value("segment_length", got=segment_length, expected="a whole number >= 1 of tokens", do="Take 64, say.")
        if memory_length < 0:
            raise bad_value("memory_length", got=memory_length, expected="a whole number >= 0 of tokens", do="Take 64, or 0 for none.")
        self.segment_length, self.memory_length, self.causal = segment_length, memory_length, causal
        self.position = nn.Linear(dim, dim, bias=False)
        self.content_bias, self.position_bias = (nn.Parameter(0.02 * torch.randn(self.num_heads, 1, self.head_dim)) for _ in range(2))

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        return real_first(self.mix_segments, tokens, mask)

    def mix_segments(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Tokens (B, N, C) whose real ones come first: all segments at once, folded into the batch."""
        batch, length, _ = tokens.shape
        size = min(self.segment_length, length)
        real = torch.ones(batch, length, dtype=torch.bool, device=tokens.device) if mask is None else mask
        tokens, real = F.pad(tokens, (0, 0, 0, -length % size)), F.pad(real, (0, -length % size))
        past, present = self.past(tokens.detach(), real, size)
        visible = torch.cat([present, fold(real, size)], 1)
        visible = visible | ~visible.any(1, keepdim=True)  # padding sees anything rather than nothing: its output is dropped
        y = self.mix_heads(fold(tokens, size), past, visible).transpose(1, 2).flatten(2)
        return self.proj(y.unflatten(0, (batch, -1)).flatten(1, 2)[:, :length])

    def past(self, tokens: Tensor, real: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """What each segment of the tokens (B, N, C) sees before itself, (B n, m, C), and which of it is there, (B n, m)."""
        reach = min(self.memory_length, tokens.shape[1] - size)
        return windows(tokens, size, reach, -size).flatten(0, 1), windows(real[..., None], size, reach, -size).flatten(0, 1).squeeze(2)

    def extend(self, tokens: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One segment (B, n, C) after those in `state`; None before the first. Equals the parallel form, segment by segment."""
        past = tokens[:, :0] if state is None else state
        return self.merge(self.mix_heads(tokens, past)), last(torch.cat([past, tokens], 1).detach(), self.memory_length)

    def mix_heads(self, tokens: Tensor, past: Tensor, visible: Tensor | None = None) -> Tensor:
        """Heads (b, h, n, d) of one segment (b, n, C) after the past (b, m, C); visible are the keys (b, m + n) that count."""
        to_q, to_kv = self.qkv.weight.split((self.dim, 2 * self.dim))
        (q,), (k, v) = self.project(tokens, to_q), self.project(torch.cat([past, tokens], 1), to_kv)
        keys, queries = k.shape[2], q.shape[2]
        ahead = 1 if self.causal else max(queries - 1, 1)
        precise = torch.promote_types(self.position.weight.dtype, torch.float32)
        distance = torch.arange(keys - 1, -ahead - 1, -1, device=tokens.device, dtype=precise)
        r = self.position(sinusoid(distance, self.dim).to(self.position.weight.dtype)) * self.head_dim**-0.5
        bias = scores_by_distance(q + self.position_bias.to(q.dtype), r.unflatten(1, (self.num_heads, -1)).transpose(0, 1), keys)
        allowed = torch.ones(queries, keys, dtype=torch.bool, device=tokens.device).tril(keys - queries if self.causal else keys)
        allowed = allowed if visible is None else allowed & visible[:, None, None]
        scores = (q + self.content_bias.to(q.dtype)) * self.head_dim**-0.5 @ k.mT + bias
        return scores.add_(torch.zeros_like(allowed, dtype=scores.dtype).masked_fill_(~allowed, float("-inf"))).softmax(-1).to(v.dtype) @ v

    def project(self, tokens: Tensor, weight: Tensor) -> Tensor:
        """Tokens (b, n, C) by rows of the joint projection: (queries, keys or values; b, h, n, d)."""
        return F.linear(tokens, weight).unflatten(-1, (-1, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)


def fold(x: Tensor, size: int) -> Tensor:
    """(B, n size, ...) -> (B n, size, ...)."""
    return x.unflatten(1, (-1, size)).flatten(0, 1)


def last(x: Tensor, count: int) -> Tensor:
    """The last rows of (B, N, C), all where there are fewer."""
    return x[:, max(0, x.shape[1] - count):]
