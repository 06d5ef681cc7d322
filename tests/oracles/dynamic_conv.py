"""Every expert convolves the map; the results are added, each in its sample's share."""

import torch
from torch.nn import functional as F


def convolved(kernel, x):
    """The map shifted to each place of the kernel, times the matrix of that place."""
    side, (height, width) = kernel.shape[-1], x.shape[2:]
    padded = F.pad(x, (side // 2,) * 4)
    y = torch.zeros(len(x), len(kernel), height, width, dtype=x.dtype)
    for u in range(side):
        for v in range(side):
            y = y + torch.einsum("oc,bchw->bohw", kernel[:, :, u, v], padded[:, :, u: u + height, v: v + width])
    return y


def twin(layer, x):
    count, rows = layer.route.out_features, []
    for sample in x:
        route = layer.route.weight @ sample.sum((1, 2)) / sample[0].numel() + layer.route.bias
        if layer.temperature is None:
            shares = 1 / (1 + torch.exp(-route))
        else:
            shares = torch.exp(route / layer.temperature) / torch.exp(route / layer.temperature).sum()
        y = 0
        for expert in range(count):
            mine = slice(expert * layer.dim, (expert + 1) * layer.dim)
            out = convolved(layer.conv.weight[mine], sample[None])
            if layer.conv.bias is not None:
                out = out + layer.conv.bias[mine][:, None, None]
            y = y + shares[expert] * out
        rows.append(y)
    return torch.cat(rows)
