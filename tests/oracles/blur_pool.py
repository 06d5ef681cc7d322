"""BlurPool from its formula: a weighted mean around every other place, of those that there are."""

from math import comb

import torch
from oracles.partial_conv import convolved


def largest(x):
    """The largest of the 3x3 places around each, of those that there are."""
    rows = [[x[:, :, max(0, i - 1): i + 2, max(0, j - 1): j + 2].amax((2, 3)) for j in range(x.shape[3])] for i in range(x.shape[2])]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def twin(layer, x):
    side, (height, width) = layer.kernel_size, x.shape[2:]
    z = largest(x) if layer.before == "max" else x
    z = convolved(x, layer.conv.weight, layer.conv.bias).clamp(min=0) if layer.before == "conv" else z
    reach, rows = range(-((side - 1) // 2), side // 2 + 1), []
    taps = [comb(side - 1, t) for t in range(side)]
    for i in range(0, height, 2):
        places = []
        for j in range(0, width, 2):
            near = [(a * b, i + u, j + v) for a, u in zip(taps, reach) for b, v in zip(taps, reach)]
            seen = [(w, row, column) for w, row, column in near if 0 <= row < height and 0 <= column < width]
            places.append(sum(w * z[:, :, row, column] for w, row, column in seen) / sum(w for w, _, _ in seen))
        rows.append(torch.stack(places, -1))
    y = torch.stack(rows, -2)
    return y if isinstance(layer.proj, torch.nn.Identity) else convolved(y, layer.proj.weight, layer.proj.bias)
