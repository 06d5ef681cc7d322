"""Gather-excite: what is gathered around a place is looked up by the place, one at a time."""

import torch
from oracles.se import excited, sigmoid


def halved(conv, x):
    """A depthwise 3 x 3 convolution of stride 2 of one sample (C, H, W)."""
    _, height, width = x.shape
    rows = []
    for i in range(0, height, 2):
        places = []
        for j in range(0, width, 2):
            seen = [(u, v) for u in (-1, 0, 1) for v in (-1, 0, 1) if 0 <= i + u < height and 0 <= j + v < width]
            places.append(conv.bias + sum(conv.weight[:, 0, u + 1, v + 1] * x[:, i + u, j + v] for u, v in seen))
        rows.append(torch.stack(places, -1))
    return torch.stack(rows, -2)


def averaged(x, extent):
    """The mean around every extent-th place."""
    _, height, width = x.shape
    rows = []
    for i in range(0, height, extent):
        near = [slice(max(0, k - extent + 1), k + extent) for k in range(0, width, extent)]
        rows.append(torch.stack([x[:, max(0, i - extent + 1): i + extent, columns].mean((1, 2)) for columns in near], -1))
    return torch.stack(rows, -2)


def gathered(layer, x):
    if layer.grid:
        kernel = layer.gather.weight.transpose(0, 1)
        growth = x[0].numel() / kernel[0, 0].numel()
        if x.shape[1:] != kernel.shape[2:]:
            kernel = torch.nn.functional.interpolate(kernel, size=x.shape[1:], mode="bilinear")
        return ((kernel[0] * x).sum((1, 2)) / growth + layer.gather.bias)[:, None, None]
    if layer.gather is None:
        return averaged(x, layer.extent) if layer.extent else x.mean((1, 2), keepdim=True)
    for n, conv in enumerate(layer.gather[::2]):
        x = halved(conv, x.clamp(min=0) if n else x)
    return x


def twin(layer, x):
    height, width = x.shape[2:]
    samples = []
    for sample in x:
        s = gathered(layer, sample)
        rows = []
        for i in range(height):
            places = []
            for j in range(width):
                nearest = s[:, i * s.shape[1] // height, j * s.shape[2] // width]
                gate = nearest if layer.fc1 is None else excited(layer, nearest)
                places.append(sigmoid(gate) * sample[:, i, j])
            rows.append(torch.stack(places, -1))
        samples.append(torch.stack(rows, -2))
    return torch.stack(samples)
