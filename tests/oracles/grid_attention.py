"""Grid attention, one place at a time: the keys are the places at the same place of other cells."""

from oracles.mobilevit import attention, each_sample, linear, patches


def offset_bias(layer, grid, unit):
    """The entry of the table at the offset from key to query, counted in units of places."""
    table, centre = layer.relative_bias.table, layer.window_size - 1
    place = [(i // grid[1] // unit[0], i % grid[1] // unit[1]) for i in range(grid[0] * grid[1])]

    def bias(head, query, keys):
        rows, columns = ([place[query][axis] - place[j][axis] + centre for j in keys] for axis in range(2))
        return table[head, rows, columns]

    return bias


def on_grid(layer, x, grid, real):
    cell = tuple(-(-side // layer.window_size) for side in grid)
    return attention(layer, x, patches(grid, cell, real), offset_bias(layer, grid, cell))


def twin(layer, tokens, grid, mask=None):
    return each_sample(tokens, mask, lambda x, real: linear(layer.proj, on_grid(layer, x, grid, real)))
