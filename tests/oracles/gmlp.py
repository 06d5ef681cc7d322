"""gMLP, one position at a time."""

import math

import torch
from oracles.mlp_mixer import gelu, on_grid
from oracles.synthesizer_random import on_pairs


def linear(layer, x):
    return x @ layer.weight.T + layer.bias


def normalised(norm, x):
    centred = x - x.mean()
    return centred / (centred.square().mean() + norm.eps).sqrt() * norm.weight + norm.bias


def attention(layer, rows, i, seen):
    """From q, k, v of each real position, joined."""
    a = layer.attention_dim
    weights = [(rows[i][:a] @ rows[j][a: 2 * a] / math.sqrt(a)).exp() for j in seen]
    return linear(layer.attention_proj, sum(w * rows[j][2 * a:] for w, j in zip(weights, seen)) / sum(weights))


def twin(layer, tokens, grid, mask=None):
    batch, length, dim = tokens.shape
    lower = torch.ones_like(layer.spatial.weight).tril() if layer.causal else 1
    spatial = on_pairs(layer.grid, grid, layer.spatial.weight * lower) * (layer.grid[0] * layer.grid[1] / length)
    bias, samples = on_grid(layer.grid, grid, layer.spatial.bias), []
    for n in range(batch):
        real = [j for j in range(length) if mask is None or mask[n, j]]
        v = {j: normalised(layer.norm, gelu(linear(layer.fc_gate, tokens[n, j]))) for j in real}
        joined = {j: linear(layer.qkv, tokens[n, j]) for j in real} if layer.attention_dim else {}
        rows = [torch.zeros(dim, dtype=tokens.dtype)] * length
        for i in real:
            seen = [j for j in real if not (layer.causal and j > i)]
            gate = bias[i] + sum(spatial[i, j] * v[j] for j in seen)
            if layer.attention_dim:
                gate = gate + attention(layer, joined, i, seen)
            rows[i] = linear(layer.fc2, gelu(linear(layer.fc1, tokens[n, i])) * gate)
        samples.append(torch.stack(rows))
    return torch.stack(samples)
