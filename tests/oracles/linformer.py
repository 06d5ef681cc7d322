"""Linformer, one head at a time, with the projected keys and values built row by row."""

import torch


def fitted(rows, built, grid):
    """Each row of a projection as a map, resized to the grid, its sum kept on a constant."""
    if grid == built:
        return rows
    maps = torch.stack([torch.nn.functional.interpolate(r.view(1, 1, *built), size=grid, mode="bilinear", align_corners=False).flatten() for r in rows])
    return maps * (built[0] * built[1]) / (grid[0] * grid[1])


def twin(layer, tokens, grid, mask=None):
    batch, length, dim = tokens.shape
    d = dim // layer.num_heads
    key_rows = fitted(layer.key_rows, layer.grid, grid)
    value_rows = key_rows if layer.value_rows is None else fitted(layer.value_rows, layer.grid, grid)
    out = []
    for n in range(batch):
        keep = torch.ones(length, dtype=tokens.dtype) if mask is None else mask[n].to(tokens.dtype)
        heads = []
        for h in range(layer.num_heads):
            q, k, v = (tokens[n] @ layer.qkv.weight[s].T + layer.qkv.bias[s] for s in (slice(p * dim + h * d, p * dim + (h + 1) * d) for p in range(3)))
            keys = torch.stack([sum(row[j] * keep[j] * k[j] for j in range(length)) for row in key_rows])
            values = torch.stack([sum(row[j] * keep[j] * v[j] for j in range(length)) for row in value_rows])
            weights = (q @ keys.T / d**0.5).exp()
            heads.append(weights / weights.sum(1, keepdim=True) @ values)
        out.append((torch.cat(heads, 1) @ layer.proj.weight.T + layer.proj.bias) * keep[:, None])
    return torch.stack(out)
