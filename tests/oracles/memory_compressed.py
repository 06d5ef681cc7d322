"""Memory-compressed attention, one block at a time over the list of real tokens, then one query at a time."""

import math

import torch
from oracles.linear_attention import joined, projected


def compressed(conv, rows, head, d):
    """Sum over the rows of one block, each times the matrix of its place; rows may be fewer than places."""
    kernel = conv.weight[head * d: head * d + d]  # (out, in, place)
    return sum(kernel[:, :, t] @ row for t, row in enumerate(rows))


def twin(layer, tokens, grid, mask=None):
    q, k, v = projected(layer, tokens)
    batch, heads, length, d = q.shape
    s, rows = layer.stride, []
    for n in range(batch):
        real = [j for j in range(length) if mask is None or mask[n, j]]
        blocks = [real[b: b + s] for b in range(0, len(real), s)]
        for h in range(heads):
            keys = [compressed(layer.key_conv, k[n, h, block], h, d) for block in blocks]
            values = [compressed(layer.value_conv, v[n, h, block], h, d) for block in blocks]
            for i in range(length):
                seen = list(zip(keys, values))
                if layer.causal:
                    seen = [pair for pair, block in zip(seen, blocks) if len(block) == s and block[-1] <= i]
                    seen = [(layer.null_key[h, 0], layer.null_value[h, 0]), *seen]
                weights = [(q[n, h, i] @ key / math.sqrt(d)).exp() for key, _ in seen]
                rows.append(sum(w * value for w, (_, value) in zip(weights, seen)) / sum(weights))
    return joined(layer, torch.stack(rows).reshape(batch, heads, length, d), mask)
