"""SwiGLU, one token at a time."""

import torch


def twin(layer, tokens, grid, mask=None):
    hidden = layer.fc2.weight.shape[1]
    out = []
    for n in range(tokens.shape[0]):
        for i in range(tokens.shape[1]):
            gate, value = layer.fc1.weight[:hidden] @ tokens[n, i], layer.fc1.weight[hidden:] @ tokens[n, i]
            y = layer.fc2.weight @ (gate / (1 + torch.exp(-gate)) * value)
            out.append(y if mask is None or mask[n, i] else torch.zeros_like(y))
    return torch.stack(out).view(tokens.shape)
