"""Bi-level routing attention, one region at a time: its mean query against the mean keys of all regions, then one position at a time."""

import torch
from oracles.flatten import convolved
from oracles.spatial_reduction import attended, by_sample, cells, part


def twin(layer, tokens, grid, mask=None):
    def mix(x, real):
        q, k, v = (part(layer, number, x) for number in range(3))
        regions = [[j for j in cell.values() if j in real] for cell in cells(grid, layer.region_size)]
        regions = [members for members in regions if members]
        shown = torch.stack([row if j in real else 0 * row for j, row in enumerate(v)])
        local, rows = convolved(layer.conv, shown.T.unflatten(1, grid)), [0 * row for row in v]
        for members in regions:
            query = sum(q[i] for i in members) / len(members)
            fits = [(query @ sum(k[j] for j in other) / len(other)).item() for other in regions]
            best = sorted(range(len(regions)), key=lambda r: -fits[r])[: layer.top_k]
            seen = [j for r in best for j in regions[r]]
            for i, row in zip(members, attended(layer, q[members], k[seen], v[seen])):
                rows[i] = row + local[i]
        return torch.stack(rows)

    return by_sample(layer, tokens, mask, mix)
