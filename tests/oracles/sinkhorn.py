"""Sparse Sinkhorn attention over the list of real tokens: the sorting matrix by plain division, then one query at a time."""

import math

import torch
from oracles.linear_attention import joined, projected


def balanced(rows, iterations, causal):
    """Rows of positive weights, one for each block that a row may take: columns, then rows divided by their sums.

    A causal row takes the blocks before it, and the sums of its columns end at the row.
    """
    for _ in range(iterations):
        table = torch.stack([torch.cat([row, row.new_zeros(len(rows) - len(row))]) for row in rows])
        sums = [table[: i + 1 if causal else None].sum(0)[: len(row)] for i, row in enumerate(rows)]
        rows = [row / total for row, total in zip(rows, sums)]
        rows = [row / row.sum() for row in rows]
    return rows


def sorting(layer, sample, keys, blocks, head):
    """The rows of P for one sample and head, from the keys (b, d) of each block and the real tokens of each block."""
    (size, d), (first, _, second), rows = keys[0].shape, layer.sort_net, []
    for i, block in enumerate(blocks):
        past = [j for b in blocks[:i] for j in b] + block[:1]
        mean = sample[past].mean(0) if layer.causal else sample[block].sum(0) / size
        wanted = (second.weight @ (first.weight @ mean + first.bias).clamp(min=0) + second.bias)[head * d: head * d + d]
        taken = range(i if layer.causal else len(blocks))
        scores = [wanted @ (keys[j].sum(0) / size) / math.sqrt(d) for j in taken]
        rows.append(torch.stack([(s / layer.temperature).exp() for s in scores]) if scores else sample.new_zeros(0))
    return balanced(rows, layer.num_iterations, layer.causal)


def twin(layer, tokens, grid, mask=None):
    q, k, v = projected(layer, tokens)
    _, nothing_k, nothing_v = projected(layer, torch.zeros_like(tokens[:1, :1]))  # of the zeros that fill a last block
    batch, heads, length, d = q.shape
    out = [[[torch.zeros(d, dtype=q.dtype)] * length for _ in range(heads)] for _ in range(batch)]
    for n in range(batch):
        real = [j for j in range(length) if mask is None or mask[n, j]]
        blocks = [real[b: b + layer.block_size] for b in range(0, len(real), layer.block_size)]
        for h in range(heads):
            keys, values = (
                [torch.cat([x[n, h, block], nothing[0, h].expand(len(blocks[0]) - len(block), -1)]) for block in blocks]
                for x, nothing in ((k, nothing_k), (v, nothing_v)))
            order = sorting(layer, tokens[n], keys, blocks, h) if blocks else []
            moved = [[sum(p * block for p, block in zip(row, x)) for x in (keys, values)] for row in order if len(row)]
            moved = [None] * (len(order) - len(moved)) + moved  # the first block has no past
            for i, block in enumerate(blocks):
                for t, place in enumerate(block):
                    near = block[: t + 1] if layer.causal else block
                    cut = layer.num_sorted_blocks
                    seen = [[k[n, h, near], v[n, h, near]], moved[i]] if cut is None else moved[:cut]
                    seen_keys, seen_values = (torch.cat(x) for x in zip(*(pair for pair in seen if pair)))
                    out[n][h][place] = (seen_keys @ q[n, h, place] / math.sqrt(d)).softmax(0) @ seen_values
    return joined(layer, torch.stack([torch.stack([torch.stack(r) for r in sample]) for sample in out]), mask)
