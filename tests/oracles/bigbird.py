"""BigBird, one query and one head at a time: the set of blocks it sees, then plain attention over their tokens."""

import math

import torch


def blocks_seen(layer, head, block, total):
    """All for the first and the last block; else window, ends, and random others, each drawn from those that are left."""
    if block in (0, total - 1):
        return set(range(total))
    seen = {0, total - 1, block - 1, block, block + 1}
    others = [b for b in range(total) if b not in seen]
    for number in layer.draws[head, block % layer.draws.shape[1]].tolist():
        if others:
            seen.add(others.pop(number % len(others)))
    return seen


def twin(layer, tokens, grid, mask=None):
    batch, length, dim = tokens.shape
    d = dim // layer.num_heads
    w, b = layer.qkv.weight, layer.qkv.bias
    b = torch.zeros(3 * dim, dtype=w.dtype) if b is None else b
    out = []
    for n in range(batch):
        real = [j for j in range(length) if mask is None or mask[n, j]]
        blocks = [real[s: s + layer.block_size] for s in range(0, len(real), layer.block_size)]
        rows = [torch.zeros(dim, dtype=tokens.dtype)] * length
        for a, block in enumerate(blocks):
            for i in block:
                heads = []
                for h in range(layer.num_heads):
                    part = [slice(p * dim + h * d, p * dim + (h + 1) * d) for p in range(3)]
                    seen = [tokens[n, j] for s in blocks_seen(layer, h, a, len(blocks)) for j in blocks[s]]
                    q = w[part[0]] @ tokens[n, i] + b[part[0]]
                    scores = torch.stack([q @ (w[part[1]] @ x + b[part[1]]) / math.sqrt(d) for x in seen])
                    heads.append(scores.softmax(0) @ torch.stack([w[part[2]] @ x + b[part[2]] for x in seen]))
                rows[i] = layer.proj.weight @ torch.cat(heads) + layer.proj.bias
        out.append(torch.stack(rows))
    return torch.stack(out)
