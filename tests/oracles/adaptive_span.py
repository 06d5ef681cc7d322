"""Adaptive span, one query at a time: exponentials times the soft mask, over their sum."""

import math

import torch
from oracles.linear_attention import joined, projected


def soft_mask(layer, head, distance):
    share = layer.spans[head]
    z = layer.max_span * (share + (share.clamp(0, 1) - share).detach())
    return ((layer.ramp_size + z - distance) / layer.ramp_size).clamp(0, 1)


def twin(layer, tokens, grid, mask=None):
    q, k, v = projected(layer, tokens)
    batch, heads, length, d = q.shape
    rows = [[[torch.zeros(d, dtype=q.dtype)] * length for _ in range(heads)] for _ in range(batch)]
    for n in range(batch):
        real = [j for j in range(length) if mask is None or mask[n, j]]
        for h in range(heads):
            for i, place in enumerate(real):
                seen = [j for j in range(len(real)) if abs(i - j) < layer.max_span and (j <= i or not layer.causal)]
                weights = [soft_mask(layer, h, abs(i - j)) * (q[n, h, place] @ k[n, h, real[j]] / math.sqrt(d)).exp() for j in seen]
                rows[n][h][place] = sum(w * v[n, h, real[j]] for w, j in zip(weights, seen)) / sum(weights)
    return joined(layer, torch.stack([torch.stack([torch.stack(r) for r in sample]) for sample in rows]), mask)
