"""Cross-shaped windows, one query at a time: attention over its stripe and a 3 x 3 sum of the values that lie in it."""

import math

import torch
from oracles.linear_attention import joined, projected


def local(conv, channels, values, place, grid, seen):
    """The convolution at one place, of values (N, d) that are the channels of a head, over the seen places alone."""
    y = conv.bias[channels]
    for down in (-1, 0, 1):
        for across in (-1, 0, 1):
            row, column = place[0] + down, place[1] + across
            if 0 <= row < grid[0] and 0 <= column < grid[1] and row * grid[1] + column in seen:
                y = y + conv.weight[channels, 0, down + 1, across + 1] * values[row * grid[1] + column]
    return y


def twin(layer, tokens, grid, mask=None):
    q, k, v = projected(layer, tokens)
    batch, heads, length, d = q.shape
    half, out = math.ceil(heads / 2), []
    for n, h, i in torch.cartesian_prod(*(torch.arange(s) for s in (batch, heads, length))).tolist():
        axis = 0 if h < half else 1
        stripe = [divmod(j, grid[1])[axis] // layer.stripe_width for j in range(length)]
        seen = [j for j in range(length) if stripe[j] == stripe[i] and (mask is None or mask[n, j])]
        if i not in seen:
            out.append(torch.zeros(d, dtype=q.dtype))
            continue
        weights = torch.stack([q[n, h, i] @ k[n, h, j] / math.sqrt(d) for j in seen]).softmax(0)
        conv, first = (layer.row_lepe, h * d) if axis == 0 else (layer.column_lepe, (h - half) * d)
        near = local(conv, slice(first, first + d), v[n, h], divmod(i, grid[1]), grid, seen)
        out.append(sum(w * v[n, h, j] for w, j in zip(weights, seen)) + near)
    return joined(layer, torch.stack(out).reshape(batch, heads, length, d), mask)
