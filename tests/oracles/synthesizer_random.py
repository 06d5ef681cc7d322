"""Random Synthesizer, one query at a time; and what is common to attention whose scores are given."""

import torch
from oracles.linear_attention import joined
from oracles.mlp_mixer import on_grid


def on_pairs(built, grid, table):
    """A table of pairs of places: first the keys of each built query, then the queries of each key."""
    keys = torch.stack([on_grid(built, grid, row) for row in table])
    return torch.stack([on_grid(built, grid, column) for column in keys.T], 1)


def attended(layer, tokens, mask, scores):
    """Softmax of scores(sample, head, query), one for each key, over the keys that the query may see, times values."""
    batch, length, dim = tokens.shape
    values = torch.nn.functional.linear(tokens, layer.value.weight, layer.value.bias).unflatten(2, (layer.num_heads, -1))
    rows = []
    for n in range(batch):
        for h in range(layer.num_heads):
            for i in range(length):
                seen = [j for j in range(length) if (mask is None or mask[n, j]) and not (layer.causal and j > i)]
                weights = scores(n, h, i)[seen].exp()
                rows.append(weights @ values[n, seen, h] / weights.sum() if seen else torch.zeros_like(values[n, i, h]))
    return joined(layer, torch.stack(rows).reshape(batch, layer.num_heads, length, -1), mask)


def hidden_units(layer, tokens):
    """relu(W_1 x + b_1) of every token, (B, N, h, d)."""
    y = tokens @ layer.hidden.weight.T + layer.hidden.bias
    return torch.where(y > 0, y, torch.zeros_like(y)).unflatten(2, (layer.num_heads, -1))


def twin(layer, tokens, grid, mask=None):
    tables = [on_pairs(layer.grid, grid, table) for table in layer.table]
    return attended(layer, tokens, mask, lambda n, h, i: tables[h][i])
