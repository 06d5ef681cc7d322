"""The Inception mixer, one place and one cell at a time."""

import torch
from oracles.mobilevit import around, attention, convolved, each_sample, gelu, linear


def cells_of(grid, size, real):
    """For each place its cell, by row and column, and for each cell its real places."""
    own = [(i // grid[1] // size, i % grid[1] // size) for i in range(grid[0] * grid[1])]
    return own, {cell: [j for j, other in enumerate(own) if other == cell and real[j]] for cell in own}


def in_cells(x, own, cells, mix):
    """mix(means of the cells that have real places), given back to the places of these."""
    filled = [cell for cell in cells if cells[cell]]
    y = mix(torch.stack([sum(x[j] for j in cells[cell]) / len(cells[cell]) for cell in filled]))
    return torch.stack([y[filled.index(cell)] if cells[cell] else torch.zeros_like(y[0]) for cell in own])


def twin(layer, tokens, grid, mask=None):
    conv, pool, _ = layer.widths

    def mix(x, real):
        x1, x2, x3 = x[:, :conv], x[:, conv: conv + pool], x[:, conv + pool:]
        places = [[j for _, _, j in around(i, grid, layer.kernel_size, real)] or [i] for i in range(len(x))]
        largest = torch.stack([torch.stack([max(x2[j, c] for j in js) for c in range(pool)]) for js in places])

        def attend(cells):
            return linear(layer.attention.proj, attention(layer.attention, cells, [list(range(len(cells)))] * len(cells)))

        low = in_cells(x3, *cells_of(grid, layer.pool_size, real), attend)
        z = torch.cat([gelu(convolved(layer.conv, linear(layer.expand, x1), grid, real)), gelu(linear(layer.pooled, largest)), low], 1)
        return linear(layer.proj, z + convolved(layer.fuse, z, grid, real))

    return each_sample(tokens, mask, mix)
