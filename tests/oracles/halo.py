"""Halo attention, one query at a time over its block and what is around it."""

import math

from oracles.neighborhood_attention import attended


def around(place, size, halo, side):
    """The places along one axis that the block of `place` sees."""
    first = place // size * size
    return range(max(first - halo, 0), min(first + size + halo, side))


def twin(layer, tokens, grid, mask=None):
    size, halo = layer.block_size, layer.halo_size

    def seen(n, i):
        rows, columns = (around(p, size, halo, side) for p, side in zip(divmod(i, grid[1]), grid))
        return [r * grid[1] + c for r in rows for c in columns]

    def score(h, i, j, q, k):
        (y, x), (v, u) = divmod(i, grid[1]), divmod(j, grid[1])
        middle = size + halo - 1
        return q @ k / math.sqrt(len(q)) + q @ (layer.relative_rows[v - y + middle] + layer.relative_columns[u - x + middle])

    return attended(layer, tokens, mask, seen, score)
