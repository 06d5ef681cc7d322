"""Cluster-Former, one query at a time, over its chunk of the list of real tokens sorted by cluster."""

import torch
from oracles.blockwise import attended


def chunk_of_each(layer, x):
    """The chunk that each token is in."""
    homes = [max(range(layer.centroids.shape[1]), key=lambda c: (row @ layer.centroids[0, c]).item()) for row in x]
    order = sorted(range(len(x)), key=lambda i: (homes[i], i))
    chunks = [order[b: b + layer.chunk_size] for b in range(0, len(x), layer.chunk_size)]
    return [next(chunk for chunk in chunks if i in chunk) for i in range(len(x))]


def twin(layer, tokens, grid, mask=None):
    samples = []
    for n in range(len(tokens)):
        one = slice(n, n + 1)
        seen = chunk_of_each(layer, tokens[n] if mask is None else tokens[n, mask[n]])
        samples.append(attended(layer, tokens[one], None if mask is None else mask[one], lambda head, i, count: seen[i]))  # noqa: B023
    return torch.cat(samples)
