"""Cross-covariance attention, one pair of channels at a time."""

import torch
from oracles.linear_attention import joined, projected


def twin(layer, tokens, grid, mask=None):
    q, k, v = projected(layer, tokens)
    heads = []
    for n in range(len(tokens)):
        seen = [j for j in range(tokens.shape[1]) if mask is None or mask[n, j]]
        for h in range(layer.num_heads):
            channels = []
            for a in range(layer.head_dim):
                total, weights = torch.zeros_like(v[n, h, :, 0]), []
                for b in range(layer.head_dim):
                    x, y = q[n, h, seen, a], k[n, h, seen, b]
                    weights.append((x @ y / (x @ x).sqrt() / (y @ y).sqrt() * layer.temperature[h, 0, 0]).exp())
                for b, weight in enumerate(weights):
                    total = total + weight / sum(weights) * v[n, h, :, b]
                channels.append(total)
            heads.append(torch.stack(channels, 1))
    return joined(layer, torch.stack(heads).unflatten(0, (len(tokens), layer.num_heads)), mask)
