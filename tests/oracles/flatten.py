"""Focused linear attention, one pair of positions and one place of the convolution at a time."""

import torch
from oracles.linear_attention import projected


def focused(x, power, eps):
    r = x.relu() + eps
    p = r**power
    return p * (r.square().sum().sqrt() / p.square().sum().sqrt())


def convolved(conv, places):
    """Depthwise, with zeros around the map: (C, H, W) -> (H W, C)."""
    channels, height, width = places.shape
    side, half = conv.weight.shape[-1], conv.weight.shape[-1] // 2
    columns = []
    for r in range(height):
        for c in range(width):
            total = torch.zeros(channels, dtype=places.dtype) if conv.bias is None else conv.bias
            for i in range(side):
                for j in range(side):
                    if 0 <= r + i - half < height and 0 <= c + j - half < width:
                        total = total + conv.weight[:, 0, i, j] * places[:, r + i - half, c + j - half]
            columns.append(total)
    return torch.stack(columns)


def twin(layer, tokens, grid, mask=None):
    q, k, v = projected(layer, tokens)
    out = []
    for n in range(len(tokens)):
        seen = [j for j in range(tokens.shape[1]) if mask is None or mask[n, j]]
        shown = v[n] if mask is None else v[n] * mask[n, :, None]
        local = convolved(layer.conv, shown.transpose(1, 2).flatten(0, 1).unflatten(1, grid))
        rows = []
        for i in range(tokens.shape[1]):
            heads = []
            for h in range(layer.num_heads):
                query = focused(q[n, h, i], layer.power, layer.eps)
                weights = [query @ focused(k[n, h, j], layer.power, layer.eps) for j in seen]
                heads.append(sum(w * v[n, h, j] for w, j in zip(weights, seen)) / (sum(weights) + layer.eps))
            row = layer.proj.weight @ (torch.cat(heads) + local[i]) + layer.proj.bias
            rows.append(row if i in seen else 0 * row)
        out.append(torch.stack(rows))
    return torch.stack(out)
