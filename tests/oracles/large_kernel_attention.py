"""Large-kernel attention, one place of each kernel at a time."""

import torch
from oracles.mlp_mixer import gelu


def pointwise(conv, x):
    """The same linear map at every place."""
    y = torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], x)
    return y if conv.bias is None else y + conv.bias[:, None, None]


def depthwise(conv, x, step=1):
    """Each place of the kernel weighs the map shifted by its offset, `step` positions for one."""
    side, (height, width) = conv.weight.shape[-1], x.shape[2:]
    margin = side // 2 * step
    wide = torch.nn.functional.pad(x, (margin, margin, margin, margin))
    shifted = [
        conv.weight[:, 0, u, v, None, None] * wide[:, :, u * step: u * step + height, v * step: v * step + width]
        for u in range(side) for v in range(side)]
    return sum(shifted) if conv.bias is None else sum(shifted) + conv.bias[:, None, None]


def twin(layer, x):
    u = gelu(pointwise(layer.proj_in, x))
    weight = pointwise(layer.channels, depthwise(layer.spread, depthwise(layer.local, u), layer.spread.dilation[0]))
    return pointwise(layer.proj, u * weight)
