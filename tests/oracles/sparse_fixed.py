"""Fixed sparse attention, one query and one head at a time, over a list of the tokens it sees."""

from oracles.blockwise import attended
from oracles.sparse_strided import stride_of


def sees(layer, head, i, j, count):
    stride = stride_of(layer, count)
    if layer.causal and j > i:
        return False
    return i // stride == j // stride if head < layer.num_local_heads else j % stride >= stride - layer.num_summary


def twin(layer, tokens, grid, mask=None):
    return attended(layer, tokens, mask, lambda head, i, count: [j for j in range(count) if sees(layer, head, i, j, count)])
