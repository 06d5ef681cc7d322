"""Gated positional attention: two softmaxes, one over contents and one over offsets, one pair at a time."""

import torch


def softmax(scores):
    e = torch.stack(scores).exp()
    return e / e.sum()


def twin(layer, tokens, grid, mask=None):
    batch, length, dim = tokens.shape
    d = dim // layer.num_heads
    out = []
    for n in range(batch):
        heads = []
        seen = [j for j in range(length) if mask is None or mask[n, j]]
        for h in range(layer.num_heads):
            parts = [slice(p * dim + h * d, p * dim + (h + 1) * d) for p in range(3)]
            q, k, v = (tokens[n] @ layer.qkv.weight[s].T + (0 if layer.qkv.bias is None else layer.qkv.bias[s]) for s in parts)
            gate = 1 / (1 + (-layer.gate[h]).exp())
            rows = []
            for i in range(length):
                if not seen:
                    rows.append(torch.zeros(d, dtype=tokens.dtype))
                    continue
                x, y, square = layer.offset_score[h]
                offset = [(j % grid[1] - i % grid[1], j // grid[1] - i // grid[1]) for j in seen]
                content = softmax([q[i] @ k[j] / d**0.5 for j in seen])
                place = softmax([x * dx + y * dy + square * (dx**2 + dy**2) for dx, dy in offset])
                rows.append(((1 - gate) * content + gate * place) @ v[seen])
            heads.append(torch.stack(rows))
        out.append(torch.cat(heads, 1) @ layer.proj.weight.T + layer.proj.bias)
    y = torch.stack(out)
    return y if mask is None else y * mask[..., None]
