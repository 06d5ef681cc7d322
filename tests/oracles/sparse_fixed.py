"""Fixed sparse attention, one query and one head at a time, over a list of the tokens it sees."""

import math

import torch


def sees(layer, head, i, j, count):
    stride = layer.stride or next(s for s in range(1, count + 1) if s * s >= count)
    if layer.causal and j > i:
        return False
    return i // stride == j // stride if head < layer.num_local_heads else j % stride >= stride - layer.num_summary


def twin(layer, tokens, grid, mask=None):
    batch, length, dim = tokens.shape
    d = dim // layer.num_heads
    w, b = layer.qkv.weight, layer.qkv.bias
    b = torch.zeros(3 * dim, dtype=w.dtype) if b is None else b
    out = []
    for n in range(batch):
        real = [j for j in range(length) if mask is None or mask[n, j]]
        rows = [torch.zeros(dim, dtype=tokens.dtype)] * length
        for i in range(len(real)):
            heads = []
            for h in range(layer.num_heads):
                part = [slice(p * dim + h * d, p * dim + (h + 1) * d) for p in range(3)]
                seen = [tokens[n, real[j]] for j in range(len(real)) if sees(layer, h, i, j, len(real))]
                if not seen:
                    heads.append(torch.zeros(d, dtype=tokens.dtype))
                    continue
                q = w[part[0]] @ tokens[n, real[i]] + b[part[0]]
                scores = torch.stack([q @ (w[part[1]] @ x + b[part[1]]) / math.sqrt(d) for x in seen])
                heads.append(scores.softmax(0) @ torch.stack([w[part[2]] @ x + b[part[2]] for x in seen]))
            rows[real[i]] = layer.proj.weight @ torch.cat(heads) + layer.proj.bias
        out.append(torch.stack(rows))
    return torch.stack(out)
