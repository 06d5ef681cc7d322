"""All-attention, one query at a time over the list of all it sees."""

import math

import torch
from oracles.linear_attention import joined, projected


def twin(layer, tokens, grid, mask=None):
    q, k, v = projected(layer, tokens)
    batch, heads, length, d = q.shape
    count = layer.num_memories
    out = []
    for n, h, i in torch.cartesian_prod(*(torch.arange(s) for s in (batch, heads, length))).tolist():
        seen = [j for j in range(length) if (mask is None or mask[n, j]) and not (layer.causal and j > i)]
        pairs = [(math.sqrt(d) * layer.memory_keys[h, s], math.sqrt(count) * layer.memory_values[h, s]) for s in range(count)]
        pairs += [(k[n, h, j], v[n, h, j]) for j in seen]
        weights = [(q[n, h, i] @ key / math.sqrt(d)).exp() for key, _ in pairs]
        out.append(sum(w * value for w, (_, value) in zip(weights, pairs)) / sum(weights))
    return joined(layer, torch.stack(out).reshape(batch, heads, length, d), mask)
