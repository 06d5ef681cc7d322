"""The MLP with a look at the neighbours, one token at a time."""

import math

import torch


def twin(layer, tokens, grid, mask=None):
    batch, length, _ = tokens.shape
    height, width = grid
    out = []
    for n in range(batch):
        real = [mask is None or bool(mask[n, i]) for i in range(length)]
        hidden = [layer.fc1.weight @ tokens[n, i] + layer.fc1.bias for i in range(length)]
        for i in range(length):
            z = layer.conv.bias
            for u in (-1, 0, 1):
                for v in (-1, 0, 1):
                    row, col = i // width + u, i % width + v
                    if 0 <= row < height and 0 <= col < width and real[row * width + col]:
                        z = z + layer.conv.weight[:, 0, u + 1, v + 1] * hidden[row * width + col]
            y = layer.fc2.weight @ (z * (1 + torch.erf(z / math.sqrt(2))) / 2) + layer.fc2.bias
            out.append(y if real[i] else torch.zeros_like(y))
    return torch.stack(out).view(tokens.shape)
