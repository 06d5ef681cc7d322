"""A norm, convolution at every other place, then a norm, both from their statistics."""

import torch


def normed(norm, y):
    if isinstance(norm, torch.nn.Identity):
        return y
    over = (1,) if isinstance(norm, torch.nn.LayerNorm) else (0, 2, 3)
    centred = y - y.mean(over, keepdim=True)
    scaled = centred / (centred.square().mean(over, keepdim=True) + norm.eps).sqrt()
    return scaled * norm.weight[:, None, None] + norm.bias[:, None, None]


def twin(layer, x):
    x = normed(layer.pre_norm, x)
    height, width = x.shape[2:]
    weight, rows = layer.conv.weight, []
    offsets, first = ((0, 1), 0) if weight.shape[2] == 2 else ((-1, 0, 1), -1)
    for i in range(0, height, 2):
        places = []
        for j in range(0, width, 2):
            seen = [(u, v) for u in offsets for v in offsets if 0 <= i + u < height and 0 <= j + v < width]
            places.append(sum(x[:, :, i + u, j + v] @ weight[:, :, u - first, v - first].T for u, v in seen))
        rows.append(torch.stack(places, -1))
    y = torch.stack(rows, -2)
    return normed(layer.norm, y if layer.conv.bias is None else y + layer.conv.bias[:, None, None])
