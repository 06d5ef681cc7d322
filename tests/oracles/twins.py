"""Twins attention: its windows one position at a time, then one cell of the smaller map at a time."""

import torch
from oracles.spatial_reduction import attended, by_sample, part
from oracles.spatial_reduction import twin as smaller_map


def windowed(layer, size, tokens, grid, mask):
    """Each position sees the real positions of its window."""
    def mix(x, real):
        q, k, v = (part(layer, number, x) for number in range(3))
        rows = []
        for i in range(len(x)):
            place = divmod(i, grid[1])
            seen = [j for j in real if all(a // size == b // size for a, b in zip(divmod(j, grid[1]), place))]
            rows.append(attended(layer, q[i: i + 1], k[seen], v[seen])[0] if seen else 0 * q[i])
        return torch.stack(rows)

    return by_sample(layer, tokens, mask, mix)


def twin(layer, tokens, grid, mask=None):
    if layer.near is None:
        return smaller_map(layer.far, tokens, grid, mask)
    near = windowed(layer.near, layer.near.block_size[0], tokens, grid, mask)
    return near if layer.far is None else near + smaller_map(layer.far, tokens + near, grid, mask)
