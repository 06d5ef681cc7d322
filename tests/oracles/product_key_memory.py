"""The memory with all its n^2 keys written out and sorted, one token and one head at a time."""

import torch


def normalised(layer, query):
    centred = query - query.mean()
    return centred / (centred.square().mean() + layer.norm.eps).sqrt() * layer.norm.weight + layer.norm.bias


def read(layer, query, h):
    """What head h reads for a query: the values of the k best keys."""
    d = len(query) // 2
    keys = [(i * layer.num_keys + j, layer.keys[0, h, i] @ query[:d] + layer.keys[1, h, j] @ query[d:])
            for i in range(layer.num_keys) for j in range(layer.num_keys)]
    best = sorted(keys, key=lambda key: -key[1].item())[: layer.top_k]
    weights = torch.stack([score for _, score in best]).softmax(0)
    return sum(w * layer.values[row] for w, (row, _) in zip(weights, best))


def twin(layer, tokens, grid, mask=None):
    out = []
    for n in range(tokens.shape[0]):
        for i in range(tokens.shape[1]):
            queries = (layer.query.weight @ tokens[n, i] + layer.query.bias).view(layer.num_heads, -1)
            y = sum(read(layer, normalised(layer, queries[h]), h) for h in range(layer.num_heads))
            out.append(y if mask is None or mask[n, i] else torch.zeros_like(y))
    return torch.stack(out).view(tokens.shape)
