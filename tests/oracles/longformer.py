"""Longformer, one query at a time: local queries over window and global tokens, global queries over all."""

import math

import torch


def affine(weight, bias, part, head, d, x):
    """Part 0, 1, ... of a joint projection, for one head and one token."""
    rows = slice(part * len(x) + head * d, part * len(x) + (head + 1) * d)
    return weight[rows] @ x if bias is None else weight[rows] @ x + bias[rows]


def attention(q, keys, values):
    weights = torch.stack([(q @ k / math.sqrt(len(q))).exp() for k in keys])
    return sum(a * v for a, v in zip(weights, values)) / weights.sum()


def local(layer, x, i, h, d):
    w, b = layer.qkv.weight, layer.qkv.bias
    seen = [j for j in range(len(x)) if abs(i - j) <= layer.window_size // 2 or j < layer.num_global]
    seen = [j for j in seen if j <= i] if layer.causal else seen
    return attention(affine(w, b, 0, h, d, x[i]), [affine(w, b, 1, h, d, x[j]) for j in seen], [affine(w, b, 2, h, d, x[j]) for j in seen])


def everywhere(layer, x, i, h, d):
    x = x[: i + 1] if layer.causal else x
    q = affine(layer.query_global.weight, layer.query_global.bias, 0, h, d, x[i])
    w, b = layer.key_value_global.weight, layer.key_value_global.bias
    return attention(q, [affine(w, b, 0, h, d, t) for t in x], [affine(w, b, 1, h, d, t) for t in x])


def twin(layer, tokens, grid, mask=None):
    batch, length, dim = tokens.shape
    out = []
    for n in range(batch):
        real = [j for j in range(length) if mask is None or mask[n, j]]
        x, rows = [tokens[n, j] for j in real], [torch.zeros(dim, dtype=tokens.dtype)] * length
        for i, place in enumerate(real):
            look = everywhere if i < layer.num_global else local
            heads = [look(layer, x, i, h, dim // layer.num_heads) for h in range(layer.num_heads)]
            rows[place] = layer.proj.weight @ torch.cat(heads) + layer.proj.bias
        out.append(torch.stack(rows))
    return torch.stack(out)
