"""Every position makes its kernels, and every channel reads its neighbourhood with that of its group."""

import torch


def twin(layer, x):
    side, groups, (height, width) = layer.kernel_size, layer.num_groups, x.shape[2:]
    group_of = torch.arange(layer.dim) // (layer.dim // groups)
    places = []
    for i in range(height):
        for j in range(width):
            hidden = (x[:, :, i, j] @ layer.reduce.weight[:, :, 0, 0].T + layer.reduce.bias).clamp(min=0)
            kernels = (hidden @ layer.span.weight[:, :, 0, 0].T + layer.span.bias).view(len(x), groups, side, side)
            y = torch.zeros(len(x), layer.dim, dtype=x.dtype)
            for u in range(side):
                for v in range(side):
                    row, column = i + u - side // 2, j + v - side // 2
                    if 0 <= row < height and 0 <= column < width:
                        y = y + kernels[:, group_of, u, v] * x[:, :, row, column]
            places.append(y)
    return torch.stack(places, -1).unflatten(-1, (height, width))
