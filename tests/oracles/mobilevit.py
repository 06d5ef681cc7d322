"""MobileViT, one place at a time; and what hybrids are made of, on the tokens (N, C) of one sample with a list of which are real."""

import math

import torch


def each_sample(tokens, mask, mix):
    """mix(x, real) of each sample, zero at masked tokens."""
    out = []
    for n, x in enumerate(tokens):
        real = [mask is None or bool(mask[n, i]) for i in range(len(x))]
        out.append(torch.stack([y if there else torch.zeros_like(y) for y, there in zip(mix(x, real), real)]))
    return torch.stack(out)


def silu(x):
    return x / (1 + (-x).exp())


def gelu(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def sigmoid(x):
    return 1 / (1 + (-x).exp())


def linear(layer, x):
    y = x @ layer.weight.T
    return y if layer.bias is None else y + layer.bias


def normed(norm, x):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def around(place, grid, size, real):
    """(u, v, j) of the real places j in the size x size ones around a place."""
    for u in range(size):
        for v in range(size):
            row, column = place // grid[1] + u - size // 2, place % grid[1] + v - size // 2
            if 0 <= row < grid[0] and 0 <= column < grid[1] and real[row * grid[1] + column]:
                yield u, v, row * grid[1] + column


def convolved(conv, x, grid, real):
    """A dense or a depthwise convolution."""
    rows = []
    for i in range(len(x)):
        y = conv.bias
        for u, v, j in around(i, grid, conv.kernel_size[0], real):
            w = conv.weight[:, :, u, v]
            y = y + (w @ x[j] if conv.groups == 1 else w[:, 0] * x[j])
        rows.append(y)
    return torch.stack(rows)


def attention(layer, x, seen, bias=lambda head, query, keys: 0):
    """Heads of softmax attention in which token i sees the tokens seen[i]; zeros where there are none."""
    dim, d = layer.dim, layer.dim // layer.num_heads
    qkv, rows = linear(layer.qkv, x), []
    for i, keys in enumerate(seen):
        heads = []
        for h in range(layer.num_heads):
            q, k, v = (qkv[:, p * dim + h * d: p * dim + h * d + d] for p in range(3))
            if keys:
                weights = (k[keys] @ q[i] / math.sqrt(d) + bias(h, i, keys)).exp()
                heads.append(weights / weights.sum() @ v[keys])
            else:
                heads.append(torch.zeros_like(q[i]))
        rows.append(torch.cat(heads))
    return torch.stack(rows)


def patches(grid, size, real):
    """For each place the real ones of the same place in their patches."""
    places = [(i // grid[1] % size[0], i % grid[1] % size[1]) for i in range(grid[0] * grid[1])]
    return [[j for j, other in enumerate(places) if other == place and real[j]] for place in places]


def twin(layer, tokens, grid, mask=None):
    def mix(x, real):
        z = linear(layer.widen, silu(convolved(layer.local, x, grid, real)))
        seen = patches(grid, layer.patch, real)
        for t in layer.transformers:
            z = z + linear(t.attention.proj, attention(t.attention, normed(t.norm1, z), seen))
            z = z + linear(t.fc2, silu(linear(t.fc1, normed(t.norm2, z))))
        z = silu(linear(layer.narrow, normed(layer.norm, z)))
        return silu(convolved(layer.fuse, torch.cat([x, z], 1), grid, real))

    return each_sample(tokens, mask, mix)
