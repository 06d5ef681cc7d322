"""Transformer-XL, one segment, one query and one key at a time; what came before a segment is detached."""

import math

import torch
from oracles.linear_attention import joined, projected


def relative(distance, dim):
    """R of one distance: the sines of all waves, then the cosines, as many as there are channels."""
    angles = [distance / 10000 ** (2 * w / dim) for w in range(-(-dim // 2))]
    return torch.tensor([*map(math.sin, angles), *map(math.cos, angles)][:dim], dtype=torch.double)


def affine(layer, part, head, x):
    """Part 0, 1 or 2 of the joint projection for one head and one vector."""
    d = layer.head_dim
    rows = slice(part * layer.dim + head * d, part * layer.dim + (head + 1) * d)
    y = layer.qkv.weight[rows] @ x
    return y if layer.qkv.bias is None else y + layer.qkv.bias[rows]


def segmentwise(layer, tokens, mask, past):
    """past(x, start): the vectors before the segment that begins at start, oldest first, from the detached real tokens x."""
    q, k, v = projected(layer, tokens)
    batch, heads, length, d = q.shape
    rows = [[[torch.zeros(d, dtype=q.dtype)] * length for _ in range(heads)] for _ in range(batch)]
    for n in range(batch):
        real = [j for j in range(length) if mask is None or mask[n, j]]
        for start in range(0, len(real), layer.segment_length):
            own = real[start: start + layer.segment_length]
            before = past(tokens[n, real].detach(), start)
            for h in range(heads):
                keys = [*(affine(layer, 1, h, x) for x in before), *(k[n, h, j] for j in own)]
                values = [*(affine(layer, 2, h, x) for x in before), *(v[n, h, j] for j in own)]
                u, w = layer.content_bias[h, 0], layer.position_bias[h, 0]
                for i, place in enumerate(own):
                    slot = len(before) + i
                    seen = range(slot + 1 if layer.causal else len(keys))
                    scores = []
                    for j in seen:
                        r = layer.position.weight[h * d: h * d + d] @ relative(slot - j, layer.dim)
                        scores.append(((q[n, h, place] + u) @ keys[j] + (q[n, h, place] + w) @ r) / math.sqrt(d))
                    weights = torch.stack(scores).softmax(0)
                    rows[n][h][place] = sum(a * values[j] for a, j in zip(weights, seen))
    return joined(layer, torch.stack([torch.stack([torch.stack(r) for r in sample]) for sample in rows]), mask)


def twin(layer, tokens, grid, mask=None):
    return segmentwise(layer, tokens, mask, lambda x, start: x[max(0, start - layer.memory_length): start])
