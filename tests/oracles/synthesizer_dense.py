"""Dense Synthesizer: the score of a pair is the row of W_2 of the key's place times the hidden units of the query."""

import torch
from oracles.mlp_mixer import on_grid
from oracles.synthesizer_random import attended, hidden_units


def twin(layer, tokens, grid, mask=None):
    hidden = hidden_units(layer, tokens)
    d = hidden.shape[-1]
    second = torch.stack([on_grid(layer.grid, grid, column) for column in layer.places.T], 1)
    return attended(layer, tokens, mask, lambda n, h, i: second[:, h * d: h * d + d] @ hidden[n, i, h])
