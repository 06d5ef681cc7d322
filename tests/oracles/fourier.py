"""The real part of a Fourier transform, as a sum of cosines."""

import math

import torch


def twin(layer, tokens, grid, mask=None):
    _, length, dim = tokens.shape
    y = []
    for n in range(length):
        for c in range(dim):
            waves = torch.tensor(
                [[math.cos(2 * math.pi * (n * m / length + c * k / dim)) for k in range(dim)] for m in range(length)], dtype=tokens.dtype)
            y.append((tokens * waves).sum((1, 2)) / math.sqrt(length * dim))
    return torch.stack(y, 1).view(-1, length, dim)
