"""GBST on a map, one pixel at a time: the block of each size that holds it, their scores, their mixture; then cells of 2 x 2."""

import torch


def convolved(conv, x, i, j):
    """Each channel of (B, C, H, W) times its own kernel around a place, with zeros outside the map."""
    half, (height, width) = conv.kernel_size[0] // 2, x.shape[2:]
    seen = [(a, b) for a in range(i - half, i + half + 1) for b in range(j - half, j + half + 1) if 0 <= a < height and 0 <= b < width]
    return conv.bias + sum(x[:, :, a, b] * conv.weight[:, 0, a - i + half, b - j + half] for a, b in seen)


def mean_of_square(pixels, i, j, size):
    """The mean of the pixels of the square of this size that holds (i, j), those that there are."""
    top, left = i - i % size, j - j % size
    inside = [pixels[a, b] for a in range(top, top + size) for b in range(left, left + size) if (a, b) in pixels]
    return sum(inside) / len(inside)


def twin(layer, x):
    height, width = x.shape[2:]
    pixels = {(i, j): convolved(layer.conv, x, i, j) for i in range(height) for j in range(width)}
    candidates = {p: [mean_of_square(pixels, *p, b) for b in range(1, layer.max_block_size + 1)] for p in pixels}
    weights = {p: torch.stack([layer.score.weight[0, :, 0, 0] @ c.T for c in found], 1).softmax(1) for p, found in candidates.items()}
    if layer.calibrate:
        likeness = {p: [(weights[p] * other).sum(1).exp() for other in weights.values()] for p in pixels}
        weights = {p: sum(a[:, None] * w for a, w in zip(likeness[p], weights.values())) / sum(likeness[p])[:, None] for p in pixels}
    mixed = {p: sum(weights[p][:, [b]] * c for b, c in enumerate(candidates[p])) for p in pixels}
    rows = []
    for i in range(0, height, 2):
        cells = [mean_of_square(mixed, i, j, 2) for j in range(0, width, 2)]
        rows.append(torch.stack([c if layer.dim == layer.dim_out else c @ layer.proj.weight.T + layer.proj.bias for c in cells], -1))
    return torch.stack(rows, -2)
