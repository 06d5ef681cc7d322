"""Stand-alone self-attention, one query at a time over the square around it, the embedding of each offset put together."""

import math

import torch
from oracles.neighborhood_attention import attended


def twin(layer, tokens, grid, mask=None):
    reach, length = layer.kernel_size // 2, grid[0] * grid[1]

    def offset(i, j):
        (y, x), (v, u) = divmod(i, grid[1]), divmod(j, grid[1])
        return v - y, u - x

    def seen(n, i):
        return [j for j in range(length) if max(map(abs, offset(i, j))) <= reach]

    def score(h, i, j, q, k):
        down, across = offset(i, j)
        embedding = torch.cat([layer.relative_rows[down + reach], layer.relative_columns[across + reach]])
        return q @ (k + embedding) / math.sqrt(len(q))

    return attended(layer, tokens, mask, seen, score)
