"""Conformer's coupled branches, one place and one cell at a time."""

import torch
from oracles.inception_mixer import cells_of, in_cells
from oracles.mobilevit import attention, convolved, each_sample, gelu, linear, normed


def relu(x):
    return x.clamp(min=0)


def twin(layer, tokens, grid, mask=None):
    width = layer.widths[0]

    def mix(x, real):
        c, t = x[:, :width], x[:, width:]
        own, cells = cells_of(grid, layer.pool_size, real)
        u = relu(convolved(layer.convs[0], relu(linear(layer.into[0], c)), grid, real))

        def branch(means):
            s, u = means[:, : t.shape[1]], means[:, t.shape[1]:]
            e = gelu(normed(layer.down_norm, linear(layer.down, u)))
            a = linear(layer.attention.proj, attention(layer.attention, normed(layer.norm, s + e), [list(range(len(s)))] * len(s)))
            return torch.cat([relu(linear(layer.up, s + e + a)), e + a], 1)

        coupled = in_cells(torch.cat([t, u], 1), own, cells, branch)
        up, added = coupled[:, : u.shape[1]], coupled[:, u.shape[1]:]
        first = linear(layer.out[0], u)
        v = relu(convolved(layer.convs[1], relu(linear(layer.into[1], c + first)) + up, grid, real))
        return torch.cat([first + linear(layer.out[1], v), added], 1)

    return each_sample(tokens, mask, mix)
