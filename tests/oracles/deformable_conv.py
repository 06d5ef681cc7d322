"""Each place of the kernel reads the map at its own points, by the paper's sum over all positions of the map, and adds its share."""

import torch


def read(values, row, column):
    """Sum over positions q of max(0, 1 - |row - q_row|) max(0, 1 - |column - q_column|) values[:, q], at points (...): (C, ...)."""
    height, width = values.shape[1:]
    near_row = (1 - (row[..., None] - torch.arange(height)).abs()).clamp(min=0)
    near_column = (1 - (column[..., None] - torch.arange(width)).abs()).clamp(min=0)
    return torch.einsum("cij,...i,...j->c...", values, near_row, near_column)


def places(height, width):
    """Row and column of every position, each (H, W)."""
    return torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")


def twin(layer, x):
    side, groups = layer.conv.kernel_size[0], layer.num_groups
    size, (rows, columns) = layer.dim // groups, places(*x.shape[2:])
    offset, modulation, samples = layer.offset(x), 1 / (1 + torch.exp(-layer.modulation(x))), []
    for b in range(len(x)):
        y = torch.zeros_like(x[b])
        for g in range(groups):
            mine = slice(g * size, (g + 1) * size)
            for u in range(side):
                for v in range(side):
                    place = g * side * side + u * side + v
                    row = rows + u - side // 2 + offset[b, 2 * place]
                    column = columns + v - side // 2 + offset[b, 2 * place + 1]
                    value = read(x[b, mine], row, column) * modulation[b, place]
                    y = y + torch.einsum("oc,chw->ohw", layer.conv.weight[:, mine, u, v], value)
        samples.append(y if layer.conv.bias is None else y + layer.conv.bias[:, None, None])
    return torch.stack(samples)
