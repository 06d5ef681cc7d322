"""Efficient attention, one head and one channel at a time."""

import torch
from oracles.linear_attention import joined, projected


def twin(layer, tokens, grid, mask=None):
    q, k, v = projected(layer, tokens)
    heads = []
    for n in range(len(tokens)):
        seen = [j for j in range(tokens.shape[1]) if mask is None or mask[n, j]]
        for h in range(layer.num_heads):
            contexts = []
            for c in range(layer.head_dim):  # one context vector per channel of the keys
                weights = torch.stack([k[n, h, j, c] for j in seen]).exp()
                contexts.append(sum(w * v[n, h, j] for w, j in zip(weights / weights.sum(), seen)))
            shares = q[n, h].exp()
            shares = shares / shares.sum(1, keepdim=True)
            heads.append(sum(shares[:, c: c + 1] * contexts[c] for c in range(layer.head_dim)))
    return joined(layer, torch.stack(heads).unflatten(0, (len(tokens), layer.num_heads)), mask)
