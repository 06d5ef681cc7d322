"""Multi-scale attention: each output of the convolutions by itself, then each pair of query and key with its two offsets."""

import torch
from oracles.spatial_reduction import attended, by_sample, cells, normed


def at_place(conv, places, row, column):
    """A depthwise convolution of a map (C, H, W) around one place, zeros outside: (C,)."""
    side, (_, height, width) = conv.weight.shape[-1], places.shape
    total = torch.zeros(len(places), dtype=places.dtype) if conv.bias is None else conv.bias
    for i in range(side):
        for j in range(side):
            r, c = row + i - side // 2, column + j - side // 2
            if 0 <= r < height and 0 <= c < width:
                total = total + conv.weight[:, 0, i, j] * places[:, r, c]
    return total


def twin(layer, tokens, grid, mask=None):
    dim, own = layer.dim, layer.attention
    s, reach = own.stride, own.reach

    def filtered(pool, x, centres):
        """Rows (N, C) as rows at the centres, each head alike."""
        if pool is None:
            return torch.stack([x[r * grid[1] + c] for r, c in centres])
        maps = [head.T.unflatten(1, grid) for head in x.split(layer.head_dim, 1)]
        return torch.stack([torch.cat([normed(at_place(pool.conv, places, r, c), pool.norm) for places in maps]) for r, c in centres])

    def mix(x, real):
        qkv = x @ layer.qkv.weight.T + (0 if layer.qkv.bias is None else layer.qkv.bias)
        qkv = torch.stack([row if j in real else 0 * row for j, row in enumerate(qkv)])
        places = [divmod(j, grid[1]) for j in range(len(x))]
        centres = [divmod(cell[0, 0], grid[1]) for cell in cells(grid, s) if any(j in real for j in cell.values())]
        q, k, v = (filtered(pool, rows, at) for pool, rows, at in zip(own.pools, qkv.split(dim, 1), (places, centres, centres)))

        def score(head, i, j):
            down, across = (min(max(a - b, -reach), reach) + reach for a, b in zip(places[i], centres[j]))
            query = q[i, head * layer.head_dim: (head + 1) * layer.head_dim]
            return query @ own.row_table[down] + query @ own.column_table[across]

        y = attended(layer, q, k, v, score)
        return y + q if own.residual_query else y

    return by_sample(layer, tokens, mask, mix)
