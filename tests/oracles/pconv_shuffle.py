"""Partial convolution, then each channel sent to its place of the shuffle."""

import torch
from oracles import partial_conv


def twin(layer, x):
    z, parts = partial_conv.twin(layer, x), layer.num_parts
    size, y = x.shape[1] // parts, [None] * x.shape[1]
    for i in range(parts):
        for j in range(size):
            y[j * parts + i] = z[:, i * size + j]
    return torch.stack(y, 1)
