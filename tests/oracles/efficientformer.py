"""EfficientFormer's attention, one query at a time."""

import torch
from oracles.mobilevit import convolved, each_sample, gelu, linear


def softmax(scores):
    return scores.exp() / scores.exp().sum(1, keepdim=True)


def twin(layer, tokens, grid, mask=None):
    table, heads, e = layer.table, layer.num_heads, layer.key_dim
    if grid != layer.grid:
        table = torch.nn.functional.interpolate(table[None], size=grid, mode="bilinear", align_corners=True)[0]

    def mix(x, real):
        keys = [j for j in range(len(x)) if real[j]]
        y = linear(layer.qkv, x)
        q, k, v = y[:, : heads * e], y[:, heads * e: 2 * heads * e], y[:, 2 * heads * e:]
        wide, rows = v.shape[1] // heads, []
        for i in range(len(x)):
            down, across = ([abs(a(i) - a(j)) for j in keys] for a in (lambda p: p // grid[1], lambda p: p % grid[1]))
            scores = torch.stack([
                k[keys, h * e: h * e + e] @ q[i, h * e: h * e + e] / e**0.5 + table[h, down, across] for h in range(heads)])
            if layer.talk is None:
                weights = softmax(scores)
            else:
                before, after = ((conv.weight[:, :, 0, 0], conv.bias[:, None]) for conv in layer.talk)
                weights = after[0] @ softmax(before[0] @ scores + before[1]) + after[1]
            rows.append(torch.cat([weights[h] @ v[keys, h * wide: h * wide + wide] for h in range(heads)]))
        y = torch.stack(rows)
        return linear(layer.proj, y if layer.talk is None else gelu(y + convolved(layer.local, v, grid, real)))

    return each_sample(tokens, mask, mix)
