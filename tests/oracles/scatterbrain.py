"""Scatterbrain as attention: the estimate of each pair, corrected to the exact weight where the key is near."""

import math

import torch
from oracles.linear_attention import joined, projected


def estimates(layer, q, keys):
    """phi(q) . phi(k) for each of the keys (n, d), the mean over the directions of a product of two exponentials."""
    q, keys = q / layer.head_dim**0.25, keys / layer.head_dim**0.25
    query = (layer.directions @ q - q @ q / 2).exp()
    return (query * (keys @ layer.directions.T - (keys * keys).sum(1, keepdim=True) / 2).exp()).mean(1)


def near(layer, i, j):
    """Whether key j is in the block of query i or next to it; with causal in this block or the one before."""
    apart = i // layer.window_size - j // layer.window_size
    return apart in ((0, 1) if layer.causal else (-1, 0, 1))


def twin(layer, tokens, grid, mask=None):
    q, k, v = projected(layer, tokens)
    batch, heads, length, d = q.shape
    rows = [[[torch.zeros(d, dtype=q.dtype)] * length for _ in range(heads)] for _ in range(batch)]
    for n in range(batch):
        real = [j for j in range(length) if mask is None or mask[n, j]]
        for h in range(heads):
            for i, place in enumerate(real):
                seen = real[: i + 1] if layer.causal else real
                corrected = torch.tensor([near(layer, i, j) for j in range(len(seen))], dtype=q.dtype)
                low_rank = estimates(layer, q[n, h, place], k[n, h, seen])
                exact = (k[n, h, seen] @ q[n, h, place] / math.sqrt(d)).exp()
                weights = low_rank + corrected * (exact - low_rank)
                rows[n][h][place] = weights @ v[n, h, seen] / weights.sum()
    return joined(layer, torch.stack([torch.stack([torch.stack(r) for r in sample]) for sample in rows]), mask)
