"""Each group of each sample alone, one place of the kernel after the other, read by the sum over all positions."""

import math

import torch
from oracles.deformable_conv import places, read
from oracles.large_kernel_conv import depthwise


def linear(layer, x):
    """A linear map of the channels of a map (C, H, W)."""
    return torch.einsum("oc,chw->ohw", layer.weight, x) + layer.bias[:, None, None]


def context(layer, x):
    """gelu(norm(depthwise * x)) of a map (C, H, W)."""
    y = depthwise(layer.depthwise.weight, x[None])[0] + layer.depthwise.bias[:, None, None]
    y = (y - y.mean(0)) / (y.var(0, unbiased=False) + layer.norm.eps).sqrt()
    y = y * layer.norm.weight[:, None, None] + layer.norm.bias[:, None, None]
    return y * (1 + torch.erf(y / math.sqrt(2))) / 2


def twin(layer, x):
    side, groups, samples = math.isqrt(layer.places), layer.num_groups, []
    rows, columns = places(*x.shape[2:])
    for sample in x:
        c, v = context(layer, sample), linear(layer.value, sample)
        offset = linear(layer.offset, c).view(groups, side, side, 2, *x.shape[2:])
        scores = torch.exp(linear(layer.modulation, c).view(groups, side, side, *x.shape[2:]))
        weights = scores / scores.sum((1, 2), keepdim=True)
        joined = []
        for g, values in enumerate(v.chunk(groups)):
            y = 0
            for u in range(side):
                for w in range(side):
                    row, column = rows + u - side // 2 + offset[g, u, w, 0], columns + w - side // 2 + offset[g, u, w, 1]
                    y = y + weights[g, u, w] * read(values, row, column)
            joined.append(y)
        samples.append(linear(layer.proj, torch.cat(joined)))
    return torch.stack(samples)
