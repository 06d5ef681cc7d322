"""Long-short attention, one query at a time, over the tokens of its window and over compressed ones."""

import math

import torch


def normed(norm, x):
    centred = x - x.mean()
    return centred / (centred.square().mean() + norm.eps).sqrt() * norm.weight + norm.bias


def compressed(layer, x, rows):
    """r vectors of width C: in each head means of the rows, with weights from a softmax over the tokens x."""
    h, r = layer.num_heads, layer.num_landmarks
    weights = torch.stack([(layer.projection.weight @ token).reshape(h, r) for token in x]).softmax(0)
    values = torch.stack(rows).reshape(len(rows), h, -1)
    return [torch.cat([sum(weights[t, head, m] * values[t, head] for t in range(len(rows))) for head in range(h)]) for m in range(r)]


def window(layer, i, length):
    """The tokens of the segment of i and of those beside it."""
    w = layer.window_size
    first = i // w * w
    if layer.causal:
        return range(max(first - w, 0), i + 1)
    return range(max(first - w // 2, 0), min(first + w + w // 2, length))


def sample(layer, x):
    dim, d, length = x.shape[1], layer.head_dim, len(x)
    y = x @ layer.qkv.weight.T if layer.qkv.bias is None else x @ layer.qkv.weight.T + layer.qkv.bias
    q, k, v = ([row[p * dim: (p + 1) * dim] for row in y] for p in range(3))
    size = layer.segment_size if layer.causal else length
    segments = [range(s, s + size) for s in range(0, length - size + 1, size)]  # complete ones
    far = []
    for segment in segments:
        keys, values = (compressed(layer, [x[t] for t in segment], [rows[t] for t in segment]) for rows in (k, v))
        far.append([(normed(layer.norm_far, a), normed(layer.norm_far, b)) for a, b in zip(keys, values)])
    out = []
    for i in range(length):
        pairs = [(normed(layer.norm_near, k[j]), normed(layer.norm_near, v[j])) for j in window(layer, i, length)]
        for s, pair in enumerate(far):
            if not layer.causal or i // size - layer.num_segments <= s < i // size:
                pairs += pair
        heads = []
        for part in (slice(h * d, h * d + d) for h in range(layer.num_heads)):
            weights = torch.stack([(q[i][part] @ key[part] / math.sqrt(d)).exp() for key, _ in pairs])
            heads.append(sum(a * value[part] for a, (_, value) in zip(weights, pairs)) / weights.sum())
        out.append(layer.proj.weight @ torch.cat(heads) + layer.proj.bias)
    return out


def twin(layer, tokens, grid, mask=None):
    out = torch.zeros_like(tokens)
    for n in range(len(tokens)):
        real = torch.arange(tokens.shape[1]) if mask is None else mask[n].nonzero().flatten()
        out = out.index_put((torch.tensor(n), real), torch.stack(sample(layer, tokens[n, real])))
    return out
