"""Swin V2, one query at a time: cosines by their definition, and the bias network asked for one offset after the other."""

import math

import torch
from oracles.neighborhood_attention import attended
from oracles.window_attention import window_of


def bias(layer, h, down, across, trained):
    """16 sigmoid(G_h(g(down), g(across)))."""
    place = [math.copysign(math.log2(1 + 8 * abs(u) / max(trained - 1, 1)) / 3, u) for u in (down, across)]
    first, _, last = layer.relative_bias.mlp
    hidden = (first.weight @ torch.tensor(place, dtype=first.weight.dtype) + first.bias).clamp(min=0)
    return 16 / (1 + (-(last.weight[h] @ hidden)).exp())


def twin(layer, tokens, grid, mask=None):
    trained = layer.pretrained_window_size
    places = [divmod(i, grid[1]) for i in range(grid[0] * grid[1])]
    windows = [tuple(window_of(layer, p, side) for p, side in zip(place, grid)) for place in places]

    def seen(n, i):
        return [j for j, window in enumerate(windows) if window == windows[i]]

    def score(h, i, j, q, k):
        cosine = q @ k / (q.square().sum().sqrt() * k.square().sum().sqrt())
        sharp = torch.minimum(layer.log_scale[h, 0, 0].exp(), torch.tensor(100.0, dtype=q.dtype))
        return cosine * sharp + bias(layer, h, places[i][0] - places[j][0], places[i][1] - places[j][1], trained)

    return attended(layer, tokens, mask, seen, score)
