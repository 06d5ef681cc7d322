"""Convolution, one place of the kernel at a time."""

import torch


def twin(layer, x):
    weight, bias = layer.conv.weight, layer.conv.bias
    side, (height, width) = weight.shape[-1], x.shape[2:]
    y = torch.zeros_like(x)
    for i in range(height):
        for j in range(width):
            for u in range(side):
                for v in range(side):
                    row, col = i + u - side // 2, j + v - side // 2
                    if 0 <= row < height and 0 <= col < width:
                        y[:, :, i, j] = y[:, :, i, j] + x[:, :, row, col] @ weight[:, :, u, v].T
    return y if bias is None else y + bias[:, None, None]
