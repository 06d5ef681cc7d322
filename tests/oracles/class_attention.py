"""Class attention with keys and values of all it sees, one head at a time."""

import math

import torch
from oracles.se import mapped


def twin(layer, tokens, grid, mask=None):
    batch, length, dim = tokens.shape
    d, samples = dim // layer.num_heads, []
    for n in range(batch):
        seen = [layer.class_token] + [tokens[n, j] for j in range(length) if mask is None or mask[n, j]]
        q, heads = mapped(layer.q, layer.class_token), []
        for h in range(layer.num_heads):
            part = slice(h * d, (h + 1) * d)
            weights = [(q[part] @ mapped(layer.k, z)[part] / math.sqrt(d)).exp() for z in seen]
            heads.append(sum(w * mapped(layer.v, z)[part] for w, z in zip(weights, seen)) / sum(weights))
        samples.append(mapped(layer.proj, torch.cat(heads)).expand(length, dim))
    y = torch.stack(samples)
    return y if mask is None else y * mask[..., None]
