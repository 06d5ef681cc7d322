"""The kernel of each sample, every weight of every expert scaled by its four attentions, then its convolution."""

import torch
from oracles.dynamic_conv import convolved


def twin(layer, x):
    dim, side, count, rows = layer.dim, layer.conv.kernel_size[0], layer.heads[-1], []
    for sample in x:
        hidden = (layer.reduce.weight @ sample.flatten(1).mean(1)).clamp(min=0)
        logits = (layer.attention.weight @ hidden + layer.attention.bias) / layer.temperature
        gates, shares = 1 / (1 + torch.exp(-logits[:-count])), torch.exp(logits[-count:]) / torch.exp(logits[-count:]).sum()
        filters, channels, places = gates[:dim], gates[dim: 2 * dim], gates[2 * dim:].view(side, side)
        kernel = 0
        for expert in range(count):
            weight = layer.conv.weight[expert * dim: (expert + 1) * dim]
            kernel = kernel + torch.einsum("fcuv,f,c,uv->fcuv", shares[expert] * weight, filters, channels, places)
        rows.append(convolved(kernel, sample[None]))
    return torch.cat(rows)
