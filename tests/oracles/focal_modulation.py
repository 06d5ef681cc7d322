"""Focal modulation, one place at a time from the maps of all levels."""

import torch
from oracles.large_kernel_attention import depthwise, pointwise
from oracles.mlp_mixer import gelu
from oracles.se import mapped


def twin(layer, x):
    dim, (height, width) = x.shape[1], x.shape[2:]
    mixed = pointwise(layer.expand, x)
    query, context, gates = mixed[:, :dim], mixed[:, dim: 2 * dim], mixed[:, 2 * dim:]
    maps = []
    for conv in layer.levels:
        context = gelu(depthwise(conv, context))
        maps.append(context)
    whole = gelu(context.mean((2, 3)))
    y = []
    for n in range(len(x)):
        for i in range(height):
            for j in range(width):
                total = gates[n, -1, i, j] * whole[n] + sum(gates[n, l, i, j] * z[n, :, i, j] for l, z in enumerate(maps))
                y.append(mapped(layer.proj, query[n, :, i, j] * mapped(layer.modulator, total)))
    return torch.stack(y).reshape(len(x), height, width, dim).permute(0, 3, 1, 2)
