"""MaxViT, one place at a time: windows and grids as sets of places."""

import torch
from oracles.mobilevit import attention, convolved, each_sample, gelu, linear, normed, patches, sigmoid, silu


def mobile(conv, x, grid, real):
    hidden = gelu(convolved(conv.depthwise, gelu(linear(conv.expand, x)), grid, real))
    mean = sum(row for row, there in zip(hidden, real) if there) / sum(real)
    return linear(conv.project, hidden * sigmoid(linear(conv.excite, silu(linear(conv.squeeze, mean)))))


def offset_bias(layer, grid, unit):
    """The entry of the table at the offset from key to query, counted in units of places."""
    table, centre = layer.relative_bias.table, layer.window_size - 1
    place = [(i // grid[1] // unit[0], i % grid[1] // unit[1]) for i in range(grid[0] * grid[1])]

    def bias(head, query, keys):
        rows, columns = ([place[query][axis] - place[j][axis] + centre for j in keys] for axis in range(2))
        return table[head, rows, columns]

    return bias


def in_windows(layer, x, grid, real):
    size, width = layer.window_size, grid[1]
    window = [(i // width // size, i % width // size) for i in range(len(x))]
    seen = [[j for j in range(len(x)) if window[j] == own and real[j]] for own in window]
    return attention(layer, x, seen, offset_bias(layer, grid, (1, 1)))


def on_grid(layer, x, grid, real):
    cell = tuple(-(-side // layer.window_size) for side in grid)
    return attention(layer, x, patches(grid, cell, real), offset_bias(layer, grid, cell))


def twin(layer, tokens, grid, mask=None):
    def mix(x, real):
        u = x + mobile(layer.conv, x, grid, real)
        u = u + linear(layer.block_attention.proj, in_windows(layer.block_attention, normed(layer.block_norm, u), grid, real))
        u = u + linear(layer.ffn.fc2, gelu(linear(layer.ffn.fc1, normed(layer.ffn_norm, u))))
        u = u + linear(layer.grid_attention.proj, on_grid(layer.grid_attention, normed(layer.grid_norm, u), grid, real))
        return u - x

    return each_sample(tokens, mask, mix)
