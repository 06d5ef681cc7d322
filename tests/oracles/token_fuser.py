"""Tokens learned, attended and mixed, then read back, one sample and one position at a time."""

import torch
from oracles.perceiver import attended, linear, normed
from oracles.token_learner import softmax_tokens


def twin(layer, tokens, grid, mask=None):
    out = []
    for n in range(len(tokens)):
        real = [i for i in range(tokens.shape[1]) if mask is None or mask[n, i]]
        z = torch.stack(softmax_tokens(layer.learner, tokens[n, real], tokens[n, real]))
        q, k, v = linear(layer.attention.qkv, normed(layer.norm, z)).split(layer.dim, 1)
        z = z + linear(layer.attention.proj, attended(q, k, v, layer.attention.num_heads))
        mixed = [sum(w * token for w, token in zip(row, z)) for row in layer.mixer.weight]
        for i in range(tokens.shape[1]):
            gates = 1 / (1 + (-linear(layer.gate, tokens[n, i])).exp())
            y = sum(g * token for g, token in zip(gates, mixed))
            out.append(y if i in real else torch.zeros_like(y))
    return torch.stack(out).view(tokens.shape)
