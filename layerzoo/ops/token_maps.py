"""Tokens (B, N, C) as the maps they come from: convolutions, means and groups of them, which no masked token enters."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.errors import bad_value
from layerzoo.ops.formats import as_map, map_to_tokens
from layerzoo.ops.linear_recurrence import full_precision
from layerzoo.ops.windows import blocks_2d


def check_count(what: str, got: object, do: str = "Choose a small one such as 2.") -> None:
    """Refuse what is no whole number >= 1."""
    if not isinstance(got, int) or got < 1:
        raise bad_value(what, got=repr(got), expected="a whole number >= 1", do=do)


def convolve(conv: nn.Conv2d, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
    """A convolution that keeps the size of its map, on tokens; masked ones are zeros to it, as the border is."""
    if mask is not None:
        tokens = tokens.masked_fill(~mask.unsqueeze(-1), 0)
    return map_to_tokens(conv(as_map(tokens, grid)))


def mean_token(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mean (B, 1, C) of the real tokens; zeros where there are none."""
    if mask is None:
        return tokens.mean(1, keepdim=True)
    share = mask.to(tokens.dtype).mean(1).clamp(min=1 / mask.shape[1])
    return tokens.masked_fill(~mask.unsqueeze(-1), 0).mean(1, keepdim=True) / share[:, None, None]


def pool_tokens(tokens: Tensor, grid: tuple[int, int], size: int, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Means of the real tokens in cells of size x size places, (B, cells, C) row by row, and which cells have any."""
    if size == 1:
        return tokens, mask
    x = as_map(tokens, grid)
    if mask is None:
        return map_to_tokens(_means(x, size)), None
    real = mask.unflatten(1, grid).unsqueeze(1)
    share = _means(real.to(x.dtype), size)
    pooled = _means(x.masked_fill(~real, 0), size) / share.clamp(min=size**-2)
    return map_to_tokens(pooled), share.flatten(1) > 0


def _means(x: Tensor, size: int) -> Tensor:
    """Means of the places in cells of a map (B, C, H, W), whose last rows and columns of cells may be cut short."""
    return F.avg_pool2d(x, size, ceil_mode=True, count_include_pad=False)


def spread_tokens(tokens: Tensor, grid: tuple[int, int], size: int) -> Tensor:
    """The way back from cells: each place of the grid gets the token of its cell, (B, N, C)."""
    if size == 1:
        return tokens
    x = tokens.unflatten(1, (-(-grid[0] // size), -(-grid[1] // size)))
    x = x[:, :, None, :, None].expand(-1, -1, size, -1, size, -1).flatten(3, 4).flatten(1, 2)
    return x[:, : grid[0], : grid[1]].flatten(1, 2)


def split_places(tokens: Tensor, grid: tuple[int, int], cell: tuple[int, int], mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Groups of the tokens that have the same place in their cells.

    Args:
        tokens: (B, N, C).
        grid: (H, W), padded to whole cells.
        cell: its sides in places.
        mask: (B, N) bool, True = real token.
    Returns:
        (B, places of a cell, cells, C), both row by row, and (B, places, cells) bool, or None where all are real.
    """
    groups = blocks_2d(tokens.unflatten(1, grid), cell).transpose(1, 2)
    if mask is None and not any(side % c for side, c in zip(grid, cell, strict=True)):
        return groups, None
    real = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else mask
    return groups, blocks_2d(real.unflatten(1, grid).unsqueeze(-1), cell).squeeze(-1).transpose(1, 2)


def join_places(groups: Tensor, grid: tuple[int, int], cell: tuple[int, int]) -> Tensor:
    """The inverse of `split_places`: (B, places, cells, C) to (B, N, C)."""
    cells = tuple(-(-side // c) for side, c in zip(grid, cell, strict=True))
    x = groups.unflatten(2, cells).unflatten(1, cell).permute(0, 3, 1, 4, 2, 5).flatten(3, 4).flatten(1, 2)
    return x[:, : grid[0], : grid[1]].flatten(1, 2)


def norm_sample(x: Tensor, norm: nn.LayerNorm, real: Tensor | None = None) -> Tensor:
    """Group norm in one group: the mean and variance are those of all channels of all real tokens (B, ..., C) of a sample."""
    if real is None:
        y = F.layer_norm(x, x.shape[1:], eps=norm.eps)
    else:
        wide, axes = full_precision(x)[0], tuple(range(1, x.ndim))
        hidden, count = ~real.unsqueeze(-1), real.flatten(1).sum(1).clamp(min=1).mul(x.shape[-1]).view(-1, *[1] * (x.ndim - 1))
        centred = wide - wide.masked_fill(hidden, 0).sum(axes, keepdim=True) / count
        y = centred * (centred.masked_fill(hidden, 0).square().sum(axes, keepdim=True) / count + norm.eps).rsqrt()
    return torch.addcmul(norm.bias, y.to(norm.weight.dtype), norm.weight)
