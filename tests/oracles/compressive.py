"""Compressive attention: Transformer-XL with the tokens that left the memory, one block and one vector at a time."""

import torch
from oracles.transformer_xl import segmentwise


def compressed(layer, block):
    """One vector of a block (c, C)."""
    if layer.compression == "mean":
        return sum(block) / len(block)
    if layer.compression == "max":
        return torch.stack([max(column) for column in block.T])
    return layer.conv.bias + sum(layer.conv.weight[:, :, t] @ x for t, x in enumerate(block))


def twin(layer, tokens, grid, mask=None):
    def past(x, start):
        border, c = max(0, start - layer.memory_length), layer.compression_rate
        old = [compressed(layer, x[b: b + c]).detach() for b in range(0, border, c)]
        return [*old[-layer.compressed_length:], *x[border: start]]

    return segmentwise(layer, tokens, mask, past)
