"""Attention, one query at a time, over the keys that lie in its window."""

import math

import torch


def window_of(layer, place, side):
    """The number of the window along one axis: the first shifted one is cut short by the border."""
    size = layer.window_size
    if side <= size:
        return 0
    return (place - (size // 2 if layer.shift else 0)) // size


def twin(layer, tokens, grid, mask=None):
    batch, length, dim = tokens.shape
    d = dim // layer.num_heads
    w, b, table, centre = layer.qkv.weight, layer.qkv.bias, layer.relative_bias.table, layer.window_size - 1
    b = torch.zeros(3 * dim, dtype=w.dtype) if b is None else b
    places = [divmod(i, grid[1]) for i in range(length)]
    windows = [tuple(window_of(layer, p, side) for p, side in zip(place, grid)) for place in places]
    out = []
    for n in range(batch):
        rows = []
        for i in range(length):
            seen = [j for j in range(length) if windows[j] == windows[i] and (mask is None or mask[n, j])]
            heads = []
            for h in range(layer.num_heads):
                if not seen:
                    heads.append(torch.zeros(d, dtype=tokens.dtype))
                    continue
                part = [slice(p * dim + h * d, p * dim + (h + 1) * d) for p in range(3)]
                q = w[part[0]] @ tokens[n, i] + b[part[0]]
                scores = torch.stack([
                    q @ (w[part[1]] @ tokens[n, j] + b[part[1]]) / math.sqrt(d)
                    + table[h, places[i][0] - places[j][0] + centre, places[i][1] - places[j][1] + centre] for j in seen])
                values = torch.stack([w[part[2]] @ tokens[n, j] + b[part[2]] for j in seen])
                heads.append(scores.exp() / scores.exp().sum() @ values)
            rows.append(layer.proj.weight @ torch.cat(heads) + layer.proj.bias)
        out.append(torch.stack(rows))
    y = torch.stack(out)
    return y if mask is None else y * mask[..., None]
