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


def attended(layer, tokens, mask, seen):
    """Softmax attention in which head h of real token i sees the real tokens seen(h, i, count), numbered without the masked ones."""
    q, k, v = projected(layer, tokens)
    batch, heads, length, d = q.shape
    rows = [[[torch.zeros(d, dtype=q.dtype)] * length for _ in range(heads)] for _ in range(batch)]
    for n in range(batch):
        real = [j for j in range(length) if mask is None or mask[n, j]]
        for h in range(heads):
            for i, place in enumerate(real):
                keys = [real[j] for j in seen(h, i, len(real))]
                if keys:
                    scores = torch.stack([q[n, h, place] @ k[n, h, j] / math.sqrt(d) for j in keys])
                    rows[n][h][place] = sum(a * v[n, h, j] for a, j in zip(scores.softmax(0), keys))
    return joined(layer, torch.stack([torch.stack([torch.stack(r) for r in sample]) for sample in rows]), mask)


def twin(layer, tokens, grid, mask=None):
    def seen(head, i, count):
        size = layer.block_size
        block = block_seen(layer, head, i // size, -(-count // size))
        return range(block * size, min(block * size + size, count))

    return attended(layer, tokens, mask, seen)
