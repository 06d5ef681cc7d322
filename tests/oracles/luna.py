"""Luna, one landmark and one position at a time; causal as a running sum."""

import math

import torch
from oracles.set_attention import average


def affine(linear, x):
    y = linear.weight @ x
    return y if linear.bias is None else y + linear.bias


def attended(q, context, d):
    """Softmax attention of one query, head by head, to vectors that are keys and values at once."""
    parts = [slice(start, start + d) for start in range(0, len(q), d)]
    return torch.cat([average(q[part], [c[part] for c in context], [c[part] for c in context]) for part in parts])


def both_ways(layer, points, xs):
    """What each position unpacks, and what is passed on."""
    context = [affine(layer.pack_context, x) for x in xs]
    packed = [attended(affine(layer.pack_query, p), context, layer.head_dim) for p in points]
    context = [affine(layer.context, y) for y in packed]
    return [attended(affine(layer.query, x), context, layer.head_dim) for x in xs], [normed(y + p) for y, p in zip(packed, points)]


def normed(x):
    centred = x - x.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt()


def omega(score):
    """Softplus that is 1 at 0."""
    return (1 + (math.log(2) * score).exp()).log() / math.log(2)


def causal(layer, points, xs):
    d, out = layer.head_dim, []
    for t in range(len(xs)):
        heads = []
        for s in range(0, layer.dim, d):
            packs = []
            for p in points:
                query = affine(layer.pack_query, p)[s: s + d]
                weights = [omega(query @ affine(layer.pack_context, x)[s: s + d] / math.sqrt(d)) for x in xs[: t + 1]]
                packs.append(sum(w * affine(layer.context, x)[s: s + d] for w, x in zip(weights, xs)) / (t + 1))
            heads.append(average(affine(layer.query, xs[t])[s: s + d], packs, packs))
        out.append(torch.cat(heads))
    return out, list(points)


def packed_twin(layer, tokens, points, mask=None):
    """Outputs, and what is passed on, with the points of each sample (B, l, C)."""
    batch, length, dim = tokens.shape
    samples, passed = [], []
    for n in range(batch):
        real = [j for j in range(length) if mask is None or mask[n, j]]
        rows = [torch.zeros(dim, dtype=tokens.dtype)] * length
        ys, last = (causal if layer.causal else both_ways)(layer, points[n], [tokens[n, j] for j in real])
        for place, y in zip(real, ys):
            rows[place] = affine(layer.proj, y)
        samples.append(torch.stack(rows))
        passed.append(torch.stack(last))
    return torch.stack(samples), torch.stack(passed)


def twin(layer, tokens, grid, mask=None):
    return packed_twin(layer, tokens, [layer.landmarks] * len(tokens), mask)[0]
