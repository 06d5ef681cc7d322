"""Self-attention, one query and one key at a time."""

import math

import torch


def position_score(layer, head, query, key, grid):
    """The learned bias of the offset from key to query."""
    if layer.relative_bias is None:
        return 0.0
    table, (height, width) = layer.relative_bias.table, layer.relative_bias.grid
    if grid != (height, width):
        table = torch.nn.functional.interpolate(
            table[None], size=(2 * grid[0] - 1, 2 * grid[1] - 1), mode="bilinear", align_corners=True)[0]
    rows, cols = query // grid[1] - key // grid[1], query % grid[1] - key % grid[1]
    return table[head, rows + grid[0] - 1, cols + grid[1] - 1]


def turned(layer, vector, place, grid):
    """A query or key turned by its row and column, as complex numbers."""
    if layer.rope is None:
        return vector
    pairs = layer.head_dim // 4
    row, col = divmod(place, grid[1])
    angles = [row * layer.rope.temperature ** (-i / pairs) for i in range(pairs)]
    angles += [col * layer.rope.temperature ** (-i / pairs) for i in range(pairs)]
    turn = torch.tensor([complex(math.cos(a), math.sin(a)) for a in angles], dtype=torch.complex128)
    z = torch.complex(vector[: 2 * pairs], vector[2 * pairs: 4 * pairs]) * turn
    return torch.cat([z.real, z.imag, vector[4 * pairs:]])


def twin(layer, tokens, grid, mask=None):
    batch, length, dim = tokens.shape
    d = dim // layer.num_heads
    w, b = layer.qkv.weight, layer.qkv.bias
    b = torch.zeros(3 * dim, dtype=w.dtype) if b is None else b
    out = []
    for n in range(batch):
        rows = []
        for i in range(length):
            heads = []
            for h in range(layer.num_heads):
                part = [slice(p * dim + h * d, p * dim + (h + 1) * d) for p in range(3)]
                seen = [j for j in range(length) if (mask is None or mask[n, j]) and not (layer.causal and j > i)]
                if not seen:
                    heads.append(torch.zeros(d, dtype=tokens.dtype))
                    continue
                q = turned(layer, w[part[0]] @ tokens[n, i] + b[part[0]], i, grid)
                scores = torch.stack([
                    q @ turned(layer, w[part[1]] @ tokens[n, j] + b[part[1]], j, grid) / math.sqrt(d)
                    + position_score(layer, h, i, j, grid) for j in seen])
                values = torch.stack([w[part[2]] @ tokens[n, j] + b[part[2]] for j in seen])
                if layer.normalize == "softmax":
                    weights = scores.exp() / scores.exp().sum()
                elif layer.normalize == "relu":
                    weights = scores.clamp(min=0) / len(seen)
                else:
                    weights = 1 / (1 + len(seen) * (-scores).exp())
                heads.append(weights @ values)
            rows.append(layer.proj.weight @ torch.cat(heads) + layer.proj.bias)
        out.append(torch.stack(rows))
    y = torch.stack(out)
    return y if mask is None else y * mask[..., None]
