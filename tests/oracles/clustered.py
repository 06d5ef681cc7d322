"""Clustered attention, with k-means on lists of bits, and one mean query at a time."""

import math

import torch
from oracles.linear_attention import joined, projected


def by_head(layer, parts, mask, mix):
    """The rows mix(head, *parts of the real tokens) of each sample and head, put in place and projected."""
    batch, heads, length, d = parts[0].shape
    out = [[[torch.zeros(d, dtype=parts[0].dtype)] * length for _ in range(heads)] for _ in range(batch)]
    for n in range(batch):
        real = [j for j in range(length) if mask is None or mask[n, j]]
        for h in range(heads):
            for place, row in zip(real, mix(h, *(part[n, h, real] for part in parts))):
                out[n][h][place] = row
    return joined(layer, torch.stack([torch.stack([torch.stack(rows) for rows in sample]) for sample in out]), mask)


def weights(q, keys):
    return torch.stack([q @ k / math.sqrt(len(q)) for k in keys]).softmax(0)


def majority(votes, before):
    """The bit that most have; at a tie the one before, and so where there are no votes."""
    return before if 2 * sum(votes) == len(votes) else int(2 * sum(votes) > len(votes))


def homes(layer, q):
    """The cluster of each query, by Lloyd's algorithm in Hamming space."""
    bits = [[int((x @ w).item() > 0) for w in layer.directions.T] for x in q]
    count, home = layer.num_clusters, []
    centers = [bits[int((c + 0.5) * len(q) / count)] for c in range(count)]
    for step in range(layer.num_iterations + 1):
        home = [min(range(count), key=lambda c: (sum(x != y for x, y in zip(b, centers[c])), c)) for b in bits]
        if step < layer.num_iterations:
            groups = [[b for b, h in zip(bits, home) if h == c] for c in range(count)]
            centers = [[majority([b[t] for b in g], old) for t, old in enumerate(center)] for g, center in zip(groups, centers)]
    return home


def centers_of(layer, q):
    """For each query the mean of its cluster."""
    home = homes(layer, q)
    return [torch.stack([x for x, g in zip(q, home) if g == h]).mean(0) for h in home]


def twin(layer, tokens, grid, mask=None):
    return by_head(layer, projected(layer, tokens), mask, lambda head, q, k, v: [weights(c, k) @ v for c in centers_of(layer, q)])
