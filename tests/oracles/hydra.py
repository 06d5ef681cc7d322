"""Hydra attention, one position and one channel at a time."""

import torch


def twin(layer, tokens, grid, mask=None):
    batch, length, dim = tokens.shape
    out = []
    for n in range(batch):
        q, k, v = (tokens[n] @ w.T for w in layer.qkv.weight.split(dim))
        if layer.qkv.bias is not None:
            q, k, v = (t + b for t, b in zip((q, k, v), layer.qkv.bias.split(dim)))
        rows = []
        for i in range(length):
            total = torch.zeros(dim, dtype=tokens.dtype)
            for j in range(i + 1 if layer.causal else length):
                if mask is None or mask[n, j]:
                    total = total + k[j] / k[j].square().sum().sqrt() * v[j]
            row = layer.proj.weight @ (q[i] / q[i].square().sum().sqrt() * total) + layer.proj.bias
            rows.append(row if mask is None or mask[n, i] else 0 * row)
        out.append(torch.stack(rows))
    return torch.stack(out)
