"""Blockwise attention, one query at a time, over the real tokens of the block that its head sees."""

import math

import torch


def block_seen(layer, head, block, total):
    """A head's own block, or the block that its shift leads to; shifts go round 1, ..., total - 1."""
    turn = head - (layer.num_heads - layer.num_shifted)
    if turn < 0 or total == 1:
        return block
    shifts = list(range(1, total))
    return (block + shifts[turn % len(shifts)]) % total


def twin(layer, tokens, grid, mask=None):
    batch, length, dim = tokens.shape
    d = dim // layer.num_heads
    w, b = layer.qkv.weight, layer.qkv.bias
    b = torch.zeros(3 * dim, dtype=w.dtype) if b is None else b
    out = []
    for n in range(batch):
        real = [j for j in range(length) if mask is None or mask[n, j]]
        blocks = [real[s: s + layer.block_size] for s in range(0, len(real), layer.block_size)]
        rows = []
        for i in range(length):
            if i not in real:
                rows.append(torch.zeros(dim, dtype=tokens.dtype))
                continue
            own, heads = real.index(i) // layer.block_size, []
            for h in range(layer.num_heads):
                wq, wk, wv = (w[p * dim + h * d: p * dim + (h + 1) * d] for p in range(3))
                bq, bk, bv = (b[p * dim + h * d: p * dim + (h + 1) * d] for p in range(3))
                seen = blocks[block_seen(layer, h, own, len(blocks))]
                q = wq @ tokens[n, i] + bq
                weights = torch.stack([(q @ (wk @ tokens[n, j] + bk) / math.sqrt(d)).exp() for j in seen])
                heads.append(sum(a * (wv @ tokens[n, j] + bv) for a, j in zip(weights, seen)) / weights.sum())
            rows.append(layer.proj.weight @ torch.cat(heads) + layer.proj.bias)
        out.append(torch.stack(rows))
    return torch.stack(out)
