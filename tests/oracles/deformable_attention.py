"""Deformable attention, one point at a time: where it goes, what lies there, and then each query and point."""

import torch
from oracles.multi_scale import at_place
from oracles.spatial_reduction import attended, by_sample, cells, normed, part
from torch.nn import functional as F


def tents(places, row, column):
    """A map (C, H, W) at one point: each place counts by how near it lies in rows times how near in columns."""
    near = [(1 - (at - torch.arange(side)).abs()).clamp(min=0) for at, side in zip((row, column), places.shape[1:])]
    return places @ near[1] @ near[0]


def twin(layer, tokens, grid, mask=None):
    s, groups = layer.stride, layer.num_groups

    def mix(x, real):
        x, q = (torch.stack([row if j in real else 0 * row for j, row in enumerate(rows)]) for rows in (x, part(layer, 0, x)))
        maps, queries = (rows.T.unflatten(1, grid).chunk(groups) for rows in (x, q))
        points, rows = [], []
        for cell in cells(grid, s):
            members = [divmod(j, grid[1]) for j in cell.values() if j in real]
            if members:
                moved = []
                for places in queries:
                    hidden = F.gelu(normed(at_place(layer.conv, places, *divmod(cell[0, 0], grid[1])), layer.norm))
                    centre = torch.tensor(members, dtype=x.dtype).mean(0)
                    moved.append(centre + layer.offset_range * s * (layer.offset.weight @ hidden).tanh())
                points.append(moved)
                rows.append(torch.cat([tents(places, *point) for places, point in zip(maps, moved)]))
        rows = torch.stack(rows)

        def score(head, i, j):
            point, reach = points[j][head * groups // layer.num_heads], layer.reach
            offset = torch.tensor(divmod(i, grid[1])) - point
            return tents(layer.table[head: head + 1], *(offset.clamp(-reach, reach) + reach))[0]

        return attended(layer, q, part(layer, 1, rows), part(layer, 2, rows), None if layer.reach is None else score)

    return by_sample(layer, tokens, mask, mix)
