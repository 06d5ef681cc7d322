"""The token-mixing MLP, one channel and one hidden unit at a time."""

import math

import torch


def gelu(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def on_grid(built, grid, row):
    """A row of weights, one for each place of the built grid, resized as a picture."""
    if built == grid:
        return row
    return torch.nn.functional.interpolate(row.reshape(1, 1, *built), size=grid, mode="bilinear").flatten()


def twin(layer, tokens, grid, mask=None):
    batch, _, dim = tokens.shape
    growth = grid[0] * grid[1] / (layer.grid[0] * layer.grid[1])
    into = [on_grid(layer.grid, grid, row) / growth for row in layer.fc1.weight]
    out_of = [on_grid(layer.grid, grid, layer.fc2.weight[:, d]) for d in range(len(into))]
    samples = []
    for n in range(batch):
        channels = []
        for c in range(dim):
            x = tokens[n, :, c] if mask is None else tokens[n, :, c] * mask[n]
            y = on_grid(layer.grid, grid, layer.fc2.bias)
            for d in range(len(into)):
                y = y + out_of[d] * gelu(into[d] @ x + layer.fc1.bias[d])
            channels.append(y)
        samples.append(torch.stack(channels, -1))
    y = torch.stack(samples)
    return y if mask is None else y * mask[..., None]
