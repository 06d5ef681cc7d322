"""Criss-cross attention, one position at a time, over the set of positions in its row or in its column."""

import torch


def once(layer, x, grid, real):
    """One pass over the tokens x (N, C); zeros where a position sees nothing."""
    y = x @ layer.qkv.weight.T if layer.qkv.bias is None else x @ layer.qkv.weight.T + layer.qkv.bias
    width = (y.shape[1] - x.shape[1]) // 2
    q, k, v = y[:, :width], y[:, width: 2 * width], y[:, 2 * width:]
    out = []
    for i in range(len(x)):
        row, column = divmod(i, grid[1])
        path = {row * grid[1] + c for c in range(grid[1])} | {r * grid[1] + column for r in range(grid[0])}
        seen = sorted(path & set(real))
        if i not in real:
            out.append(torch.zeros_like(x[i]))
            continue
        weights = torch.stack([q[i] @ k[j] for j in seen]).exp()
        out.append(weights / weights.sum() @ v[seen])
    return torch.stack(out)


def twin(layer, tokens, grid, mask=None):
    out = []
    for n in range(len(tokens)):
        real = [j for j in range(tokens.shape[1]) if mask is None or mask[n, j]]
        x = tokens[n]
        for _ in range(layer.recurrence):
            x = x + once(layer, x, grid, real)
        out.append(x - tokens[n])
    return torch.stack(out)
