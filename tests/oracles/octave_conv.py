"""Octave convolution with its four paths apart; means and repeats one place at a time."""

import torch
from oracles.partial_conv import convolved


def pool(x):
    """The mean of each cell of 2x2, of the places that there are."""
    rows = [[x[:, :, i: i + 2, j: j + 2].mean((2, 3)) for j in range(0, x.shape[3], 2)] for i in range(0, x.shape[2], 2)]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def up(x, height, width):
    """To each place the value of its cell."""
    return torch.stack([torch.stack([x[:, :, i // 2, j // 2] for j in range(width)], -1) for i in range(height)], -2)


def twin(layer, x):
    high, (height, width) = layer.conv.weight.shape[1], x.shape[2:]
    fine, coarse = x[:, :high], pool(x[:, high:])
    high_to_low, low_to_low = layer.to_low.weight[:, :high], layer.to_low.weight[:, high:]
    y_high = convolved(fine, layer.conv.weight, layer.conv.bias) + up(convolved(coarse, layer.to_high.weight), height, width)
    y_low = convolved(coarse, low_to_low, layer.to_low.bias) + convolved(pool(fine), high_to_low)
    return torch.cat([y_high, up(y_low, height, width)], 1)
