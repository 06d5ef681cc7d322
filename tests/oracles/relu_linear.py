"""ReLU linear attention, with each place of the convolutions and each pair of positions by itself."""

import torch


def aggregated(scale, places, groups):
    """A depthwise convolution with zeros around the map, then a linear map in each group: (C, H, W) -> the same."""
    depthwise, pointwise = (module.weight for module in scale)
    channels, height, width = places.shape
    side, half = depthwise.shape[-1], depthwise.shape[-1] // 2
    columns = []
    for r in range(height):
        for c in range(width):
            total = torch.zeros(channels, dtype=places.dtype)
            for i in range(side):
                for j in range(side):
                    if 0 <= r + i - half < height and 0 <= c + j - half < width:
                        total = total + depthwise[:, 0, i, j] * places[:, r + i - half, c + j - half]
            parts = zip(total.chunk(groups), pointwise[:, :, 0, 0].chunk(groups))
            columns.append(torch.cat([w @ t for t, w in parts]))
    return torch.stack(columns, 1).unflatten(1, (height, width))


def twin(layer, tokens, grid, mask=None):
    batch, length, dim = tokens.shape
    d, out = layer.head_dim, []
    for n in range(batch):
        seen = [j for j in range(length) if mask is None or mask[n, j]]
        qkv = tokens[n] @ layer.qkv.weight.T + (0 if layer.qkv.bias is None else layer.qkv.bias)
        if mask is not None:
            qkv = qkv * mask[n, :, None]
        scales = [qkv, *(aggregated(s, qkv.T.unflatten(1, grid), 3 * layer.num_heads).flatten(1).T for s in layer.scales)]
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
