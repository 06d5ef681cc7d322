"""Star-Transformer, one satellite and one head at a time."""

import torch
from oracles.luna import affine
from oracles.set_attention import average


def attended(part, heads, x, context):
    """LN(relu(MultiAtt(x, context))) of one vector and a list of vectors."""
    q, dim = affine(part.query, x), len(x)
    both = [affine(part.key_value, c) for c in context]
    d, out = dim // heads, []
    for s in range(0, dim, d):
        out.append(average(q[s: s + d], [b[s: s + d] for b in both], [b[dim + s: dim + s + d] for b in both]))
    y = affine(part.proj, torch.cat(out)).clamp(min=0)
    y = (y - y.mean()) / (y.var(correction=0) + part.norm.eps) ** 0.5
    return y * part.norm.weight + part.norm.bias


def twin(layer, tokens, grid, mask=None):
    samples = []
    for n in range(len(tokens)):
        real = [j for j in range(tokens.shape[1]) if mask is None or mask[n, j]]
        embedded = [tokens[n, j] for j in real]
        states, hub = embedded, sum(embedded) / len(embedded)
        for t, ring in enumerate(layer.rings):
            if t:
                hub = attended(layer.hubs[t - 1], layer.num_heads, hub, [hub, *states])
            states = [
                attended(ring, layer.num_heads, h, [states[i - 1], h, states[(i + 1) % len(states)], embedded[i], hub])
                for i, h in enumerate(states)]
        rows = [torch.zeros_like(tokens[n, 0])] * tokens.shape[1]
        for place, h in zip(real, states):
            rows[place] = h
        samples.append(torch.stack(rows))
    return torch.stack(samples)
