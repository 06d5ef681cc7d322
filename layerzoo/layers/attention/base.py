"""Heads of exact attention with any score and any weights, and the position encodings that go inside."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.errors import bad_value
from layerzoo.layers.base import HeadsLayer, check_choice
from layerzoo.ops.attention import NORMALIZERS, attend, make_scores, make_weights, mix_heads, visible
from layerzoo.positions.base import Position
from layerzoo.registry import POSITIONS

SCORES = ("dot", "cosine", "additive", "general")
NORMS = {"none": None, "rms": nn.RMSNorm, "layer": nn.LayerNorm}
LARGEST_SCALE = 100  # of a cosine: the temperature is at least 0.01, as in Swin V2


class ExactHeads(HeadsLayer):
    """A token layer whose `split` prepares queries and keys for a score, and whose `attend` mixes the values.

    Softmax over dot, cosine and general scores is fused; what changes the weights themselves makes them.

    Args:
        dim, num_heads, qkv_bias: as of HeadsLayer.
        score: "dot", "cosine", "additive" or "general".
        normalize: of `ops.attention.make_weights`.
        include_self: position i sees itself.
        num_kv_heads: heads of keys and values; None = num_heads.
        talking_heads: learned sums of heads, of the scores and of the weights; "biased" adds a number for each head to the weights.
        qk_norm: "none", "rms" or "layer", of the channels of each head's queries and keys.
        sink: one more key for each head, of a learned score and no value.
        causal: position i sees positions up to i.
        dropout: probability of dropping an attention weight.
    Raises:
        ValueError: for an unknown choice, counts of heads that do not divide, and dropout or a sink with weights that have none.
    """

    def __init__(
        self, dim: int, num_heads: int | None, qkv_bias: bool, score: str, normalize: str, include_self: bool, num_kv_heads: int | None,
        talking_heads: bool | str, qk_norm: str, sink: bool, causal: bool, dropout: float,
    ):
        super().__init__(dim, num_heads, qkv_bias)
        heads, head_dim = self.num_heads, self.head_dim
        check_choice("score", score, SCORES)
        check_choice("normalize", normalize, NORMALIZERS)
        check_choice("qk_norm", qk_norm, tuple(NORMS))
        check_choice("talking_heads", talking_heads, (False, True, "biased"))
        kv_heads = heads if num_kv_heads is None else num_kv_heads
        if kv_heads < 1 or heads % kv_heads:
            expected, do = f"a divisor of num_heads={heads}", "With 1 all heads share a key and a value."
            raise bad_value("num_kv_heads", got=kv_heads, expected=expected, do=do)
        if dropout and normalize != "softmax":
            raise bad_value("dropout", got=dropout, expected=f"0 with normalize={normalize!r}", do="Only softmax weights can be dropped.")
        if sink and normalize not in ("softmax", "entmax"):
            do = "Only weights that sum to one leave it a share."
            raise bad_value("sink", got=sink, expected=f"False with normalize={normalize!r}", do=do)
        self.normalize, self.include_self, self.causal, self.dropout = normalize, include_self, causal, dropout
        self.num_kv_heads, self.widths = kv_heads, (dim, kv_heads * head_dim, kv_heads * head_dim)
        self.fused = normalize == "softmax" and score != "additive" and not talking_heads
        if kv_heads < heads:
            self.qkv = nn.Linear(dim, sum(self.widths), bias=qkv_bias)
        self.q_norm, self.k_norm = (NORMS[qk_norm](head_dim, eps=1e-6) for _ in "qk") if qk_norm != "none" else (None, None)
        self.log_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10))) if score == "cosine" else None
        self.between = nn.Parameter(torch.eye(head_dim).repeat(heads, 1, 1)) if score == "general" else None
        self.read = nn.Parameter(torch.randn(heads, head_dim) * head_dim**-0.5) if score == "additive" else None
        self.talk_scores, self.talk_weights = (nn.Parameter(torch.eye(heads)) for _ in range(2)) if talking_heads else (None, None)
        self.talk_bias = nn.Parameter(torch.zeros(heads, 1, 1)) if talking_heads == "biased" else None
        self.sink = nn.Parameter(torch.zeros(heads)) if sink else None

    def split_heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, h, N, d) as the score takes them, and keys and values of num_kv_heads heads."""
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in qkv.split_with_sizes(self.widths, -1))
        if self.q_norm is not None:
            q, k = (norm(t.to(norm.weight.dtype)).to(v.dtype) for norm, t in ((self.q_norm, q), (self.k_norm, k)))
        if self.log_scale is not None:
            scale = self.log_scale.clamp(max=math.log(LARGEST_SCALE)).exp() * self.head_dim**0.5
            q, k = ((s * F.normalize(t, dim=-1, eps=1e-6)).to(v.dtype) for s, t in ((scale, q), (1, k)))  # eps is above 0 in float16
        return q if self.between is None else q @ self.between.to(q.dtype), k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, bias: Tensor | None = None, num_extra: int = 0) -> Tensor:
        """Mix values; arguments as of `ops.attention.attend`, with keys and values of num_kv_heads heads. Returns (B, N, C)."""
        if self.num_kv_heads < self.num_heads:
            k, v = (t.repeat_interleave(self.num_heads // self.num_kv_heads, 1) for t in (k, v))
        if self.fused:
            dropout = self.dropout if self.training else 0.0
            y = attend(q, k, v, mask, bias, self.causal, dropout, include_self=self.include_self, num_extra=num_extra, sink=self.sink)
            return self.merge(y)
        scores = mix_heads(make_scores(q, k, self.read), self.talk_scores)
        seen = visible(q, k, mask, self.causal, self.include_self, num_extra)
        weights = make_weights(scores if bias is None else scores + bias, self.normalize, seen, self.sink)
        weights = mix_heads(weights, self.talk_weights)
        if self.talk_bias is not None:
            weights = weights + (self.talk_bias if seen is None else self.talk_bias * seen)
        weights = F.dropout(weights, self.dropout, self.training)
        return self.merge(weights.to(v.dtype) @ v)


def create_inner(name: str, num_heads: int, head_dim: int, grid: tuple[int, int] | None, score: str = "dot") -> Position:
    """The position encoding `name`, which acts inside attention: on queries and keys, or on scores.

    Raises:
        ValueError: for an unknown name, an absolute encoding, tables without a grid, and additive scores of turned queries and keys.
    """
    kind = POSITIONS.find(name).kind
    if kind == "absolute":
        do = "An absolute encoding is added to the map: give it to the model."
        raise bad_value("position", got=repr(name), expected="one that turns queries and keys or is added to scores, such as rope2d", do=do)
    if kind == "rotary" and score == "additive":
        do = "What is turned tells its offset in products alone: choose relative_bias."
        raise bad_value("position", got=repr(name), expected="one that is added to scores, with score='additive'", do=do)
    return POSITIONS.create(name, head_dim if kind == "rotary" else num_heads, defaults={"grid": grid, "dim": head_dim})
