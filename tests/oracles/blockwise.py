"""Blockwise attention, one query at a time, over the real tokens of the block that its head sees."""

import math

import torch
from oracles.linear_attention import joined, projected


def block_seen(layer, head, block, total):
    """A head's own block, or the block that its shift leads to; shifts go round 1, ..., total - 1."""
    turn = head - (layer.num_heads - layer.num_shifted)
    if turn < 0 or total == 1:
        return block
    shifts = list(range(1, total))
    return (block + shifts[turn % len(shifts)]) % total


def one_by_one(layer, tokens, mask, mix):
    """Each real token i of each head h by itself: mix(h, i, q, keys, values), of the real tokens in their order, numbered without the masked ones."""
    q, k, v = projected(layer, tokens)
    batch, heads, length, d = q.shape
    rows = [[[torch.zeros(d, dtype=q.dtype)] * length for _ in range(heads)] for _ in range(batch)]
    for n in range(batch):
        real = [j for j in range(length) if mask is None or mask[n, j]]
        for h in range(heads):
            for i, place in enumerate(real):
                rows[n][h][place] = mix(h, i, q[n, h, place], k[n, h, real], v[n, h, real])
    return joined(layer, torch.stack([torch.stack([torch.stack(r) for r in sample]) for sample in rows]), mask)


def attended(layer, tokens, mask, seen):
    """Softmax attention in which head h of real token i sees the real tokens seen(h, i, count)."""
    def mix(head, i, q, keys, values):
        places = list(seen(head, i, len(keys)))
        if not places:
            return torch.zeros_like(q)
        scores = torch.stack([q @ keys[j] / math.sqrt(len(q)) for j in places])
        return sum(a * values[j] for a, j in zip(scores.softmax(0), places))

    return one_by_one(layer, tokens, mask, mix)


def twin(layer, tokens, grid, mask=None):
    def seen(head, i, count):
        size = layer.block_size
        block = block_seen(layer, head, i // size, -(-count // size))
        return range(block * size, min(block * size + size, count))

    return attended(layer, tokens, mask, seen)
