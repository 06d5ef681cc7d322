"""ETC, one query at a time: global tokens read global and real tokens, then each token reads globals and neighbours."""

import math

import torch


def linear(layer, x, part, head, d):
    """Part 0, 1, ... of a joint projection of one token, for one head."""
    y = layer.weight @ x if layer.bias is None else layer.weight @ x + layer.bias
    return y[part * len(x) + head * d: part * len(x) + head * d + d]


def attention(scores, values):
    weights = torch.stack(scores).exp()
    return sum(w * v for w, v in zip(weights, values)) / weights.sum()


def globals_read(layer, x, d):
    """The global tokens after g2g and g2l."""
    start, out = layer.global_tokens, []
    for token in start:
        heads = []
        for h in range(layer.num_heads):
            q = linear(layer.global_qkv, token, 0, h, d)
            keys = [linear(layer.global_qkv, t, 1, h, d) for t in start] + [linear(layer.key_value_g2l, t, 0, h, d) for t in x]
            values = [linear(layer.global_qkv, t, 2, h, d) for t in start] + [linear(layer.key_value_g2l, t, 1, h, d) for t in x]
            heads.append(attention([q @ k / math.sqrt(d) for k in keys], values))
        out.append(token + layer.global_proj.weight @ torch.cat(heads) + layer.global_proj.bias)
    return out


def token_reads(layer, x, i, summary, d):
    """l2g and l2l for token i of the real tokens x."""
    heads = []
    for h in range(layer.num_heads):
        q = linear(layer.qkv, x[i], 0, h, d)
        scores = [q @ linear(layer.key_value_l2g, t, 0, h, d) for t in summary]
        values = [linear(layer.key_value_l2g, t, 1, h, d) for t in summary]
        for j in range(len(x)):
            if abs(j - i) <= layer.radius:
                label = max(-layer.max_distance, min(layer.max_distance, j - i))
                scores.append(q @ (linear(layer.qkv, x[j], 1, h, d) + layer.relative[h, label + layer.max_distance]))
                values.append(linear(layer.qkv, x[j], 2, h, d))
        heads.append(attention([s / math.sqrt(d) for s in scores], values))
    return layer.proj.weight @ torch.cat(heads) + layer.proj.bias


def twin(layer, tokens, grid, mask=None):
    batch, length, dim = tokens.shape
    d, out = dim // layer.num_heads, []
    for n in range(batch):
        real = [j for j in range(length) if mask is None or mask[n, j]]
        x, rows = [tokens[n, j] for j in real], [torch.zeros(dim, dtype=tokens.dtype)] * length
        summary = globals_read(layer, x, d) if layer.num_global else []
        for i, place in enumerate(real):
            rows[place] = token_reads(layer, x, i, summary, d)
        out.append(torch.stack(rows))
    return torch.stack(out)
