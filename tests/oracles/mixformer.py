"""MixFormer's block, one place at a time, with the gate on the values."""

from types import SimpleNamespace

import torch
from oracles.maxvit import in_windows
from oracles.mobilevit import convolved, each_sample, gelu, linear, normed, sigmoid


def two_maps(maps, x):
    return linear(maps[2], gelu(linear(maps[0], x)))


def gated(attention, gate):
    """Window attention whose values are scaled."""
    scale = torch.cat([torch.ones(2 * len(gate), dtype=gate.dtype), gate])
    weight, bias = scale[:, None] * attention.qkv.weight, attention.qkv.bias
    qkv = SimpleNamespace(weight=weight, bias=None if bias is None else scale * bias)
    same = {name: getattr(attention, name) for name in ("dim", "num_heads", "window_size", "relative_bias")}
    return SimpleNamespace(qkv=qkv, **same)


def twin(layer, tokens, grid, mask=None):
    def mix(x, real):
        c = gelu(convolved(layer.conv, normed(layer.conv_norm, linear(layer.conv_in, x)), grid, real))
        gate = sigmoid(two_maps(layer.channels, sum(row for row, there in zip(c, real) if there) / sum(real)))
        a = in_windows(gated(layer.attention, gate), normed(layer.attention_norm, linear(layer.attention_in, x)), grid, real)
        c = linear(layer.conv_out, c) * sigmoid(two_maps(layer.places, a))
        return linear(layer.proj, torch.cat([normed(layer.norm, a), c], 1))

    return each_sample(tokens, mask, mix)
