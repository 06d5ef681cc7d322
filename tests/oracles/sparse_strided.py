"""Strided sparse attention, one query and one head at a time, over a list of the tokens it sees."""

from oracles.blockwise import attended


def stride_of(layer, count):
    """As given, or the least l with l * l >= count."""
    return layer.stride or next(s for s in range(1, count + 1) if s * s >= count)


def sees(layer, head, i, j, count):
    stride = stride_of(layer, count)
    if layer.causal and j > i:
        return False
    return abs(i - j) < stride if head < layer.num_local_heads else (i - j) % stride == 0


def twin(layer, tokens, grid, mask=None):
    return attended(layer, tokens, mask, lambda head, i, count: [j for j in range(count) if sees(layer, head, i, j, count)])
