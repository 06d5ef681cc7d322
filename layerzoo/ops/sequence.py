"""Sequences with masked tokens, for layers that cut a sequence into pieces."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def real_first(mix: Callable[[Tensor, Tensor | None], Tensor], tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Apply `mix` to the sequence of the real tokens, so that padding anywhere moves no border between pieces.

    Args:
        mix: tokens (B, N, C) whose real ones come first, and their mask (B, N) or None, to (B, N, C). It never sees a sample of
            padding alone: one token of it counts as real, and TokenLayer drops what comes of it.
        tokens: (B, N, C).
        mask: (B, N) bool, True = real token.
    """
    if mask is None:
        return mix(tokens, None)
    order = (~mask).int().argsort(dim=1, stable=True).unsqueeze(-1)
    real = torch.arange(mask.shape[1], device=mask.device) < mask.sum(1, keepdim=True).clamp(min=1)
    y = mix(tokens.gather(1, order.expand_as(tokens)), real)
    return torch.zeros_like(y).scatter(1, order.expand_as(y), y)


def take(heads: Tensor, place: Tensor) -> Tensor:
    """Rows of heads (B, h, N, d) at place (B, n): (B, h, n, d)."""
    return heads.gather(2, place[:, None, :, None].expand(-1, heads.shape[1], -1, heads.shape[3]))
