"""ReLU linear attention, with each place of the convolutions and each pair of positions by itself."""

import torch
from oracles.flatten import convolved


def aggregated(scale, places, groups):
    """A depthwise convolution of a map (C, H, W), then a linear map in each group: (H W, C)."""
    depthwise, pointwise = scale
    weights = pointwise.weight[:, :, 0, 0].chunk(groups)
    return torch.cat([part @ w.T for part, w in zip(convolved(depthwise, places).chunk(groups, 1), weights)], 1)


def twin(layer, tokens, grid, mask=None):
    batch, length, dim = tokens.shape
    d, out = layer.head_dim, []
    for n in range(batch):
        seen = [j for j in range(length) if mask is None or mask[n, j]]
        qkv = tokens[n] @ layer.qkv.weight.T + (0 if layer.qkv.bias is None else layer.qkv.bias)
        if mask is not None:
            qkv = qkv * mask[n, :, None]
        scales = [qkv, *(aggregated(s, qkv.T.unflatten(1, grid), 3 * layer.num_heads) for s in layer.scales)]
        rows = []
        for i in range(length):
            heads = []
            for scale in scales:
                q, k, v = scale.split(dim, 1)
                for part in range(0, dim, d):
                    here = slice(part, part + d)
                    weights = [q[i, here].relu() @ k[j, here].relu() for j in seen]
                    y = sum((w * v[j, here] for w, j in zip(weights, seen)), torch.zeros(d, dtype=q.dtype))
                    heads.append(y / (sum(weights) + layer.eps))
            row = layer.proj.weight @ torch.cat(heads) + layer.proj.bias
            rows.append(row if i in seen else 0 * row)
        out.append(torch.stack(rows))
    return torch.stack(out)
