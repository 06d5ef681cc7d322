"""Partial convolution: the first channels by the offsets of the kernel, the others untouched."""

import torch


def convolved(x, weight, bias=None):
    """Each place of the kernel (C_out, C_in / groups, k, l) weighs the map moved by its offset, in groups of channels; zeros outside."""
    _, inner, tall, wide = weight.shape
    (height, width), top, left = x.shape[2:], tall // 2, wide // 2
    framed = x.new_zeros(*x.shape[:2], height + tall - 1, width + wide - 1)
    framed[:, :, top: top + height, left: left + width] = x
    groups = framed.unflatten(1, (-1, inner))
    y = 0
    for u in range(tall):
        for v in range(wide):
            moved = groups[..., u: u + height, v: v + width]
            y = y + torch.einsum("bgihw,goi->bgohw", moved, weight[:, :, u, v].unflatten(0, (groups.shape[1], -1)))
    y = y.flatten(1, 2)
    return y if bias is None else y + bias[:, None, None]


def twin(layer, x):
    count = x.shape[1] // layer.num_parts
    first = convolved(x[:, :count], layer.conv.weight, layer.conv.bias)
    return torch.stack([first[:, c] if c < count else x[:, c] for c in range(x.shape[1])], 1)
