"""Memory formats of maps."""

from __future__ import annotations

import torch
from torch import Tensor


def match_format(y: Tensor, like: Tensor) -> Tensor:
    """The map y in the memory format of the map `like`: NCHW or channels_last; a copy only where it has another."""
    return y.contiguous(memory_format=torch.contiguous_format if like.is_contiguous() else torch.channels_last)


def map_to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H*W, C); a view if x is channels_last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def as_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, H*W, C) -> (B, C, H, W), a view in channels_last."""
    return tokens.unflatten(1, grid).permute(0, 3, 1, 2)  # transposed first, a map of one sample gets strides that convolutions take for NCHW
