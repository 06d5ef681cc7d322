"""Memory formats of maps."""

from __future__ import annotations

import torch
from torch import Tensor


def match_format(y: Tensor, like: Tensor) -> Tensor:
    """The map y in the memory format of the map `like`: NCHW or channels_last; a copy only where it has another."""
    return y.contiguous(memory_format=torch.contiguous_format if like.is_contiguous() else torch.channels_last)
