"""Sequences with masked tokens, for layers that cut a sequence into pieces."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def real_first(mix: Callable[[Tensor, Tensor | None], Tensor], tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Apply `mix` to the sequence of the real tokens, so that padding anywhere moves no border between pieces.

    Args:
        mix: tokens (B, N, C) whose real ones come first, and their mask (B, N) or None, to (B, N, C).
        tokens: (B, N, C).
        mask: (B, N) bool, True = real token.
    """
    if mask is None:
        return mix(tokens, None)
    order = (~mask).int().argsort(dim=1, stable=True).unsqueeze(-1)
    real = torch.arange(mask.shape[1], device=mask.device) < mask.sum(1, keepdim=True)
    y = mix(tokens.gather(1, order.expand_as(tokens)), real)
    return torch.zeros_like(y).scatter(1, order.expand_as(y), y)
