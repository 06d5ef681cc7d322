"""TokenLearner, one token of one sample at a time, over the list of all positions."""

import math

import torch
from oracles.perceiver import linear, normed


def gelu(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def softmax_tokens(learner, rows, values):
    """Each token: the mean of the values under the exponentials of its scores of the rows."""
    scores = gelu(linear(learner.fc1, rows)) @ learner.fc2.weight.T
    weights = [[score.exp() for score in token] for token in scores.T]
    return [sum(w * value for w, value in zip(token, values)) / sum(token) for token in weights]


def convolved(conv, x):
    """3x3 convolution of a map (C, H, W) with zeros around it, place by place."""
    height, width = x.shape[1:]
    places = []
    for i in range(height):
        for j in range(width):
            seen = [(u, v) for u in (-1, 0, 1) for v in (-1, 0, 1) if 0 <= i + u < height and 0 <= j + v < width]
            places.append(sum(conv.weight[:, :, u + 1, v + 1] @ x[:, i + u, j + v] for u, v in seen))
    return torch.stack(places, -1).reshape(-1, height, width)


def sigmoid_tokens(convs, rows, values, grid):
    """Each token: the mean over all positions of the values, each times a gate of its own."""
    maps = rows.T.reshape(-1, *grid)
    for i in (0, 2, 4, 6):
        maps = convolved(convs[i], maps if i == 0 else gelu(maps))
    gates = 1 / (1 + (-maps.flatten(1)).exp())
    return [sum(g * value for g, value in zip(token, values)) / len(values) for token in gates]


def twin(layer, x):
    samples = []
    for sample in x:
        values = sample.flatten(1).T
        rows = normed(layer.norm, values)
        if layer.maps == "softmax":
            tokens = softmax_tokens(layer.learner, rows, values)
        else:
            tokens = sigmoid_tokens(layer.convs, rows, values, x.shape[2:])
        samples.append(torch.stack([token if layer.dim == layer.dim_out else linear(layer.proj, token) for token in tokens], 1))
    count = layer.num_tokens
    rows = max(r for r in range(1, count + 1) if count % r == 0 and r * r <= count)
    return torch.stack(samples).reshape(len(x), layer.dim_out, rows, count // rows)
