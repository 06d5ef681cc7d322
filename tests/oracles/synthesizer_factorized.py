"""Factorized Synthesizer: the scores of each query from its two factors."""

import torch
from oracles.mlp_mixer import on_grid
from oracles.synthesizer_random import attended, hidden_units


def random_scores(layer, grid):
    queries, keys = ([torch.stack([on_grid(layer.grid, grid, row) for row in head]) for head in t] for t in (layer.queries, layer.keys))
    return lambda n, h, i: sum(a[i] * b for a, b in zip(queries[h], keys[h]))


def dense_scores(layer, tokens, grid):
    hidden, (height, width) = hidden_units(layer, tokens), layer.grid
    rows = [torch.stack([on_grid((height, 1), (grid[0], 1), row) for row in head]) for head in layer.rows]
    columns = [torch.stack([on_grid((1, width), (1, grid[1]), row) for row in head]) for head in layer.columns]

    def scores(n, h, i):
        of_row, of_column = hidden[n, i, h] @ rows[h], hidden[n, i, h] @ columns[h]
        return torch.stack([a * b for a in of_row for b in of_column])

    return scores


def twin(layer, tokens, grid, mask=None):
    return attended(layer, tokens, mask, random_scores(layer, grid) if layer.kind == "random" else dense_scores(layer, tokens, grid))
