"""Attention-augmented convolution: a convolution place by place, and attention query by query."""

import torch
from oracles import conv
from oracles.botnet import relative
from oracles.linear_attention import joined


def twin(layer, tokens, grid, mask=None):
    real = tokens if mask is None else tokens * mask[..., None]
    y = real @ layer.qkv.weight.T + layer.qkv.bias
    heads, (key_dim, _, value_dim) = layer.num_heads, layer.widths
    cut = [y[..., :key_dim], y[..., key_dim: 2 * key_dim], y[..., 2 * key_dim:]]
    q, k, v = (t.reshape(*t.shape[:2], heads, -1).transpose(1, 2) for t in cut)
    attended = joined(layer, relative(layer.relative, q, k, v, grid, mask), mask)
    channels = tokens.shape[2] - value_dim
    convolved = convolve(layer.conv, real.transpose(1, 2).unflatten(2, grid), channels).flatten(2).transpose(1, 2)
    return torch.cat([convolved if mask is None else convolved * mask[..., None], attended], 2)


def convolve(kernel, x, channels):
    """The twin of `conv` wants as many channels out as in: the missing kernels are zeros, whose channels are dropped."""
    missing = x.shape[1] - channels
    full = torch.nn.Module()
    full.conv = torch.nn.Module()
    full.conv.weight = torch.cat([kernel.weight, torch.zeros(missing, *kernel.weight.shape[1:], dtype=x.dtype)])
    full.conv.bias = torch.cat([kernel.bias, torch.zeros(missing, dtype=x.dtype)])
    return conv.twin(full, x)[:, :channels]
