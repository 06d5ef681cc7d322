"""MobileViTv2, one place at a time."""

import torch
from oracles.mobilevit import convolved, each_sample, linear, patches, silu


def sample_normed(norm, x, real):
    """The mean and the variance of all numbers of the real tokens."""
    numbers = torch.cat([row for row, there in zip(x, real) if there])
    mean = numbers.sum() / len(numbers)
    variance = (numbers - mean).square().sum() / len(numbers)
    return (x - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias


def separable(layer, x, seen):
    dim, rows = x.shape[1], []
    y = linear(layer.qkv, x)
    scores, k, v = y[:, 0], y[:, 1: dim + 1], y[:, dim + 1:]
    for i, group in enumerate(seen):
        context = sum((scores[j].exp() * k[j] for j in group), torch.zeros_like(x[i])) / max(1e-300, sum(scores[j].exp() for j in group))
        rows.append(v[i].clamp(min=0) * context)
    return linear(layer.proj, torch.stack(rows))


def twin(layer, tokens, grid, mask=None):
    def mix(x, real):
        z = linear(layer.inward, silu(convolved(layer.local, x, grid, real)))
        seen = patches(grid, layer.patch, real)
        for t in layer.transformers:
            z = z + separable(t, sample_normed(t.norm1, z, real), seen)
            z = z + linear(t.fc2, silu(linear(t.fc1, sample_normed(t.norm2, z, real))))
        return linear(layer.outward, sample_normed(layer.norm, z, real))

    return each_sample(tokens, mask, mix)
