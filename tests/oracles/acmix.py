"""ACmix in two steps as in the paper: attention one query at a time, and the numbers of all shifts before their convolution."""

import math

import torch
from oracles.linear_attention import joined, projected


def attended(layer, q, k, v, grid, seen):
    """Heads (h, N, d) of one sample."""
    radius = layer.kernel_size // 2
    out, unit = torch.zeros_like(v), max(radius, 1)
    for h in range(layer.num_heads):
        for i in seen:
            offsets = [(j, i // grid[1] - j // grid[1], i % grid[1] - j % grid[1]) for j in seen]
            near = [(j, down, across) for j, down, across in offsets if max(abs(down), abs(across)) <= radius]
            places = [j for j, _, _ in near]
            moved = k[h, places] + torch.tensor([o[1:] for o in near], dtype=k.dtype) / unit @ layer.position.weight.T
            weights = (moved @ q[h, i] / math.sqrt(layer.head_dim)).exp()
            mean = weights @ v[h, places] / weights.sum()
            out = out.index_put((torch.tensor(h), torch.tensor(i)), mean)
    return out


def shifted(layer, heads, grid, seen):
    """(N, C) from the 3 h heads (3 h, N, d) of one sample."""
    height, width = grid
    size, half, d = layer.shift.weight.shape[-1], layer.shift.weight.shape[-1] // 2, layer.head_dim
    numbers = torch.einsum("gnd,mg->ndm", heads, layer.combine.weight)
    rows = []
    for i in range(height * width):
        y = layer.shift.bias
        for j in seen:
            down, across = j // width - i // width + half, j % width - i % width + half
            if 0 <= down < size and 0 <= across < size:
                kernel = layer.shift.weight[:, :, down, across].unflatten(0, (d, -1))
                y = y + torch.einsum("dhm,dm->dh", kernel, numbers[j]).flatten()
        rows.append(y)
    return torch.stack(rows)


def twin(layer, tokens, grid, mask=None):
    q, k, v = projected(layer, tokens)
    out = []
    for n in range(len(tokens)):
        seen = [j for j in range(tokens.shape[1]) if mask is None or mask[n, j]]
        local = shifted(layer, torch.cat([q[n], k[n], v[n]]), grid, seen)
        total = layer.alpha * attended(layer, q[n], k[n], v[n], grid, seen).transpose(0, 1).flatten(1) + layer.beta * local
        out.append(total.unflatten(1, (layer.num_heads, -1)).transpose(0, 1))
    return joined(layer, torch.stack(out), mask)
