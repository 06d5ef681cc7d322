"""The MLP, one token at a time."""

import math

import torch


def twin(layer, tokens, grid, mask=None):
    out = []
    for n in range(tokens.shape[0]):
        for i in range(tokens.shape[1]):
            hidden = layer.fc1.weight @ tokens[n, i] + layer.fc1.bias
            smooth = layer.act is torch.nn.functional.gelu
            hidden = hidden * ((1 + torch.erf(hidden / math.sqrt(2))) / 2 if smooth else (hidden + 3).clamp(0, 6) / 6)
            y = layer.fc2.weight @ hidden + layer.fc2.bias
            out.append(y if mask is None or mask[n, i] else torch.zeros_like(y))
    return torch.stack(out).view(tokens.shape)
