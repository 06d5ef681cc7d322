"""Performer as attention: the estimated weight of each pair, from the features of one query and one key."""

import torch


def twin(layer, tokens, grid, mask=None):
    batch, length, dim = tokens.shape
    d = dim // layer.num_heads
    y = (tokens @ layer.qkv.weight.T + layer.qkv.bias).reshape(batch, length, 3, layer.num_heads, d)
    out = []
    for n in range(batch):
        rows = [[None] * layer.num_heads for _ in range(length)]
        real = [j for j in range(length) if mask is None or mask[n, j]]
        for h in range(layer.num_heads):
            def exponents(x):
                x = x / d**0.25
                return torch.stack([w @ x - x @ x / 2 for w in layer.directions])

            queries, keys = ([exponents(y[n, j, p, h]) for j in range(length)] for p in (0, 1))
            top = 0 if layer.causal or not real else torch.stack([keys[j] for j in real]).max().detach()
            for i in range(length):
                query = (queries[i] - queries[i].max().detach()).exp() + layer.eps
                seen = [j for j in real if not (layer.causal and j > i)]
                weights = [query @ ((keys[j] - top).exp() + layer.eps) for j in seen]
                values = [w * y[n, j, 2, h] for w, j in zip(weights, seen)]
                rows[i][h] = sum(values) / sum(weights) if seen else torch.zeros(d, dtype=tokens.dtype)
        out.append(torch.stack([torch.cat(r) for r in rows]))
    result = torch.stack(out) @ layer.proj.weight.T + layer.proj.bias
    return result if mask is None else result * mask[..., None]
