"""LSH attention, one query at a time over the list of the keys it meets in all rounds, from buckets of one token at a time."""

import math

import torch
from oracles.clustered import by_head


def shared(layer, tokens, linear):
    """q, which is also k, and v as (B, h, N, d), from a joint projection of two parts."""
    batch, length, dim = tokens.shape
    y = tokens @ linear.weight.T
    y = y if linear.bias is None else y + linear.bias
    return [y[..., p * dim: (p + 1) * dim].reshape(batch, length, layer.num_heads, -1).transpose(1, 2) for p in range(2)]


def bucket(layer, x, r, count):
    """Digits of the bucket: of the axes and their opposites, the one nearest to x."""
    bits, digits = 0, []
    while 2 * count >= layer.chunk_size * 2 ** (bits + 1) and bits < 18:
        bits += 1
    for level in range(3):
        if bits > 6 * level:
            axes = layer.rotations[level, :, r, : 2 ** min(6, bits - 6 * level) // 2]
            sides = [(sign * (x @ axis)).item() for axis in axes.T for sign in (1, -1)]
            digits.append(sides.index(max(sides)))
    return digits


def met(layer, q, r):
    """For each token, the others of its bucket that it meets in round r."""
    buckets = [bucket(layer, x, r, len(q)) for x in q]
    ranks = {i: rank for rank, i in enumerate(sorted(range(len(q)), key=lambda i: (buckets[i], i)))}

    def near(i, j):
        if layer.causal:
            return 0 < ranks[i] - ranks[j] <= layer.chunk_size
        return ranks[i] // layer.chunk_size - ranks[j] // layer.chunk_size in (0, 1)

    return [[j for j in range(len(q)) if j != i and buckets[i] == buckets[j] and near(i, j)] for i in range(len(q))]


def twin(layer, tokens, grid, mask=None):
    def mix(head, q, v):
        rounds = [met(layer, q, r) for r in range(layer.rotations.shape[2])]
        for i in range(len(q)):
            keys = [j for seen in rounds for j in seen[i]] or [i]
            scores = torch.stack([q[i] @ q[j] / q[j].norm() / math.sqrt(len(q[i])) for j in keys])
            yield sum(a * v[j] for a, j in zip(scores.softmax(0), keys))

    return by_head(layer, shared(layer, tokens, layer.qv), mask, mix)
