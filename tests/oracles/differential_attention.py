"""Differential attention, one query at a time: two softmax maps over the keys it sees, their difference, and its norm."""

import torch
from oracles.linear_attention import joined, projected


def twin(layer, tokens, grid, mask=None):
    q, k, v = projected(layer, tokens)
    batch, heads, length, wide = q.shape
    d, rows = wide // 2, []
    (u1, w1), (u2, w2) = layer.lambda_vectors
    share = (u1 @ w1).exp() - (u2 @ w2).exp() + layer.lambda_init
    for n in range(batch):
        for h in range(heads):
            for i in range(length):
                seen = [j for j in range(length) if (mask is None or mask[n, j]) and not (layer.causal and j > i)]
                if not seen:
                    rows.append(0 * v[n, h, i])
                    continue
                maps = []
                for half in (slice(0, d), slice(d, wide)):
                    scores = (k[n, h, seen][:, half] @ q[n, h, i, half] / d**0.5).exp()
                    maps.append(scores / scores.sum())
                y = (maps[0] - share * maps[1]) @ v[n, h, seen]
                y = y / (y.square().mean() + layer.norm.eps).sqrt() * layer.norm.weight
                rows.append((1 - layer.lambda_init) * y)
    return joined(layer, torch.stack(rows).reshape(batch, heads, length, wide), mask)
