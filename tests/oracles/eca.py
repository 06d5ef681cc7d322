"""Efficient channel attention, one channel at a time over its neighbours that exist."""

import torch
from oracles.se import means, sigmoid


def twin(layer, x):
    weight = layer.conv.weight.flatten()
    half, samples = len(weight) // 2, []
    for sample in x:
        s = means(sample)
        scores = [sum(weight[u + half] * s[c + u] for u in range(-half, half + 1) if 0 <= c + u < len(s)) for c in range(len(s))]
        samples.append(torch.stack([sigmoid(score) * channel for score, channel in zip(scores, sample)]))
    return torch.stack(samples)
