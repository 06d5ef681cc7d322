"""Neighbourhoods on a map: blocks of queries with the windows of keys around them, who sees whom, and scores of offsets."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from layerzoo.ops.attention import attend
from layerzoo.ops.relative_logits import pair_scores
from layerzoo.ops.token_maps import join_places
from layerzoo.ops.windows import blocks_2d, windows_2d

SHORTEST_SIDE = 8  # of a block of queries: shorter ones waste the kernel and hold more copies of each key

Cut = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]  # (rows, columns) of a block, of its window, and of what is before it there


def around(grid: tuple[int, int], size: tuple[int, int], margin: int) -> Cut:
    """Blocks of `size` places with windows that reach `margin` places further on all sides; an axis of one block needs no margin."""
    size = tuple(min(s, side) for s, side in zip(size, grid))
    return _cut(size, tuple(min(margin, (side - 1) // s * s) for s, side in zip(size, grid)))


def neighbourhoods(grid: tuple[int, int], kernel: int, moved: bool = False, anywhere: bool = False) -> Cut:
    """Blocks whose windows hold the `kernel` x `kernel` places around each query, with the fewest pairs of queries and keys.

    Args:
        grid: (H, W).
        kernel: places seen along an axis, odd.
        moved: at the ends of the map neighbourhoods are moved inside.
        anywhere: those ends may be anywhere, not only at the border.
    """
    sizes, margins = [], []
    for side in grid:
        size, margin, fewest = side, 0, side * side
        for s in range(SHORTEST_SIDE, min(2 * SHORTEST_SIDE + kernel // 2, side)):
            short = (side - 1) % s + 1  # places of the last block, whose first query looks back further if it is short
            reach = kernel - 1 if anywhere or moved and short <= kernel // 2 else kernel // 2
            pairs = -(-side // s) * s * (s + 2 * reach)
            if pairs < fewest:
                size, margin, fewest = s, reach, pairs
        sizes.append(size)
        margins.append(margin)
    return _cut(tuple(sizes), tuple(margins))


def _cut(size: tuple[int, int], margin: tuple[int, int]) -> Cut:
    return size, tuple(s + 2 * m for s, m in zip(size, margin)), margin


def offsets(cut: Cut, device: torch.device) -> list[Tensor]:
    """Along rows and along columns: place of the key less place of the query, (queries, keys) of a block."""
    return [
        torch.arange(width, device=device) - before - torch.arange(size, device=device)[:, None] for size, width, before in zip(*cut)]


def table_scores(table: Tensor, cut: Cut) -> Tensor:
    """Scores (h, queries, keys) of a block: the entry of a table (h, 2a - 1, 2b - 1) at the place of the query less that of the key."""
    middle = [side // 2 for side in table.shape[1:]]
    return pair_scores(table, *((m - offset).clamp(0, 2 * m) for m, offset in zip(middle, offsets(cut, table.device))))


def hidden(table: Tensor, seen: Tensor, groups: int = 1) -> Tensor:
    """Scores (h, queries, keys) of a block for all of them, -inf where a query does not see a key.

    Args:
        table: (h, queries, keys).
        seen: (B groups, n, queries or 1, keys) bool.
        groups: maps that one was folded into.
    Returns:
        (B h groups, n, queries, keys).
    """
    return torch.where(seen.unflatten(0, (-1, groups)).unsqueeze(1), table[:, None, None], float("-inf")).flatten(0, 2)


def offset_scores(by_row: Tensor, by_column: Tensor, rows: Tensor, columns: Tensor, seen: Tensor, cut: Cut) -> Tensor:
    """Scores by_row . rows[row offset] + by_column . columns[column offset], -inf where a query does not see a key.

    Args:
        by_row, by_column: (B h, n, queries, d) of the blocks.
        rows, columns: (2a - 1, d), from the key furthest up or left to the one furthest down or right.
        seen: (B, n, queries or 1, keys) bool.
        cut: of the map.
    Returns:
        (B h, n, queries, keys).
    """
    near = []
    for table, offset in zip((rows, columns), offsets(cut, rows.device)):
        place = (offset + len(table) // 2).clamp(0, len(table) - 1)
        near.append(table.index_select(0, place.flatten()).unflatten(0, place.shape))
    down = torch.einsum("bnyxd,ykd->bnyxk", by_row.unflatten(2, cut[0]), near[0]).contiguous()
    across = torch.einsum("bnyxd,xkd->bnyxk", by_column.unflatten(2, cut[0]), near[1]).contiguous()
    scores = (down.unsqueeze(-1) + across.unsqueeze(-2)).flatten(4).flatten(2, 3).unflatten(0, (len(seen), -1))
    return scores.masked_fill_(~seen.unsqueeze(1), float("-inf")).flatten(0, 1)  # in place: it is as large as the weights


def real_places(tokens: Tensor, grid: tuple[int, int], mask: Tensor | None) -> Tensor:
    """(B, H, W, 1) bool: the places of a map that hold a real token."""
    mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else mask
    return mask.unflatten(1, grid).unsqueeze(-1)


def seen_block(real: Tensor, cut: Cut) -> Tensor:
    """(B, n, 1, keys) bool: the real places (B, H, W, 1) of each block's window."""
    return windows_2d(real, *cut).mT | ~blocks_2d(real, cut[0]).any(2, keepdim=True)  # padding sees anything rather than nothing


def seen_near(real: Tensor, cut: Cut, kernel: int) -> Tensor:
    """(B, n, queries, keys) bool: the real places (B, H, W, 1) of the `kernel` x `kernel` around each query."""
    rows, columns = (offset[None].abs() <= kernel // 2 for offset in offsets(cut, real.device))
    return _pairs(rows, columns) & windows_2d(real, *cut).mT | ~blocks_2d(real, cut[0])


def seen_moved(real: Tensor, cut: Cut, kernel: int, step: tuple[int, int] = (1, 1)) -> Tensor:
    """Like `seen_near` with neighbourhoods moved inside the smallest rectangle of all real places, on a map folded by `step`.

    Returns:
        (B step[0] step[1], n, queries, keys) bool.
    """
    near = []
    for axis in (0, 1):
        line = real.any(2 - axis).squeeze(-1)  # (B, side)
        inside = (line.cumsum(1) > 0) & (line.flip(1).cumsum(1).flip(1) > 0)
        inside = F.pad(inside, (0, -line.shape[1] % step[axis])).unflatten(1, (-1, step[axis])).mT
        near.append(_moved(inside, kernel, *(part[axis] for part in cut)))
    near = _pairs(near[0].unsqueeze(2), near[1].unsqueeze(1)).flatten(0, 2)
    real = fold(real, step)
    return near & windows_2d(real, *cut).mT | ~blocks_2d(real, cut[0])


def _moved(inside: Tensor, kernel: int, size: int, width: int, before: int) -> Tensor:
    """(..., n, size, width) bool: the keys along an axis that a query sees, of the run of places `inside` (..., side)."""
    first = inside.int().argmax(-1)[..., None, None]
    last = first + inside.sum(-1)[..., None, None]
    query = torch.arange(-(-inside.shape[-1] // size) * size, device=inside.device).unflatten(0, (-1, size))
    start = (query - kernel // 2).minimum(last - kernel).maximum(first).unsqueeze(-1)
    key = query[:, :1, None] - before + torch.arange(width, device=inside.device)
    return (key >= start) & (key < start + kernel)  # beyond the run no key is real


def _pairs(rows: Tensor, columns: Tensor) -> Tensor:
    """(..., n, queries, keys), both true: from rows (..., blocks, queries, keys) and columns likewise."""
    both = rows[..., :, None, :, None, :, None] & columns[..., None, :, None, :, None, :]
    return both.flatten(-2).flatten(-3, -2).flatten(-4, -3)


def fold(x: Tensor, step: tuple[int, int]) -> Tensor:
    """(B, H, W, D), padded by zeros, as maps (B step[0] step[1], rows, columns, D) of every step-th place."""
    x = F.pad(x, (0, 0, 0, -x.shape[2] % step[1], 0, -x.shape[1] % step[0]))
    return x.unflatten(2, (-1, step[1])).unflatten(1, (-1, step[0])).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def unfold(x: Tensor, step: tuple[int, int]) -> Tensor:
    """The inverse of `fold`, with its padding."""
    return x.unflatten(0, (-1, *step)).permute(0, 3, 1, 4, 2, 5).flatten(3, 4).flatten(1, 2)


def attend_windows(q: Tensor, k: Tensor, v: Tensor, scores: Tensor, grid: tuple[int, int], cut: Cut) -> Tensor:
    """Each query over the keys that it sees of its block's window.

    Args:
        q: (B h, n, queries, d), blocks of a map of `grid`.
        k, v: (B h, n, keys, d).
        scores: (B h, n, queries, keys), added to those of content; for each query one above -inf.
    Returns:
        (B h, H W, d).
    """
    return join_places(attend(q, k, v, bias=scores).transpose(1, 2), grid, cut[0])
