"""Agent attention, one agent and one position at a time."""

import torch
from oracles.flatten import convolved
from oracles.linear_attention import projected
from torch.nn import functional as F


def cells(side, count):
    """First and last place of each of `count` cells of an axis, which overlap where it does not divide."""
    return [range(side * c // count, -(-side * (c + 1) // count)) for c in range(count)]


def attended(scores, values):
    weights = torch.stack(scores).exp()
    return sum(w / weights.sum() * v for w, v in zip(weights, values))


def twin(layer, tokens, grid, mask=None):
    q, k, v = projected(layer, tokens)
    d, size, out = layer.head_dim, layer.agent_size, []
    gather, spread = (F.interpolate(b, size=grid, mode="bilinear").flatten(2) for b in (layer.gather_bias, layer.spread_bias))
    for n in range(len(tokens)):
        seen = [j for j in range(tokens.shape[1]) if mask is None or mask[n, j]]
        members = [[r * grid[1] + c for r in rows for c in cols if r * grid[1] + c in seen] for rows in cells(grid[0], size) for cols in cells(grid[1], size)]
        shown = v[n] if mask is None else v[n] * mask[n, :, None]
        local = convolved(layer.conv, shown.transpose(1, 2).flatten(0, 1).unflatten(1, grid))
        agents, gathered = {}, {}
        for h in range(layer.num_heads):
            for a, places in enumerate(members):
                if places:
                    agents[h, a] = sum(q[n, h, j] for j in places) / len(places)
                    gathered[h, a] = attended([agents[h, a] @ k[n, h, j] / d**0.5 + gather[h, a, j] for j in seen], [v[n, h, j] for j in seen])
        rows = []
        for i in range(tokens.shape[1]):
            heads = []
            for h in range(layer.num_heads):
                used = [a for a in range(size**2) if (h, a) in agents]
                heads.append(attended([q[n, h, i] @ agents[h, a] / d**0.5 + spread[h, a, i] for a in used], [gathered[h, a] for a in used]))
            row = layer.proj.weight @ (torch.cat(heads) + local[i]) + layer.proj.bias
            rows.append(row if i in seen else 0 * row)
        out.append(torch.stack(rows))
    return torch.stack(out)
