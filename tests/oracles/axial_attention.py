"""Attention, one query at a time, over its row and then over its column."""

import math

import torch


def attention(heads, x, i, seen):
    """The output for token i of a sequence x that sees the tokens `seen`."""
    dim, d = heads.dim, heads.head_dim
    w, b = heads.qkv.weight, heads.qkv.bias
    b = torch.zeros(3 * dim, dtype=w.dtype) if b is None else b
    joined = []
    for h in range(heads.num_heads):
        part = [slice(p * dim + h * d, p * dim + (h + 1) * d) for p in range(3)]
        q = w[part[0]] @ x[i] + b[part[0]]
        weights = torch.stack([(q @ (w[part[1]] @ x[j] + b[part[1]]) / math.sqrt(d)).exp() for j in seen])
        values = torch.stack([w[part[2]] @ x[j] + b[part[2]] for j in seen])
        joined.append(weights / weights.sum() @ values)
    return heads.proj.weight @ torch.cat(joined) + heads.proj.bias


def twin(layer, tokens, grid, mask=None):
    batch, length, _ = tokens.shape
    out = []
    for n in range(batch):
        real = [j for j in range(length) if mask is None or mask[n, j]]
        for i in range(length):
            if i not in real:
                out.append(torch.zeros_like(tokens[n, i]))
                continue
            past = [j for j in real if j <= i] if layer.causal else real
            row = [j for j in past if j // grid[1] == i // grid[1]]
            column = [j for j in past if j % grid[1] == i % grid[1]]
            out.append(attention(layer.rows, tokens[n], i, row) + attention(layer.columns, tokens[n], i, column))
    return torch.stack(out).view(tokens.shape)
