"""Nystrom attention, one sample and one head at a time: lists of real tokens, explicit segments, explicit matrices."""

import torch


def softmax_rows(a, b):
    e = (a @ b.T / a.shape[1] ** 0.5).exp()
    return e / e.sum(1, keepdim=True)


def landmarks(x, count):
    """Means of `count` consecutive segments: token r of n is in segment floor(r count / n)."""
    n = len(x)
    return torch.stack([torch.stack([x[r] for r in range(n) if r * count // n == s]).mean(0) for s in range(count)])


def inverse(a, steps):
    z = a.T / (a.abs().sum(0).max() * a.abs().sum(1).max())
    one = torch.eye(len(a), dtype=a.dtype)
    for _ in range(steps):
        az = a @ z
        z = 0.25 * z @ (13 * one - az @ (15 * one - az @ (7 * one - az)))
    return z


def twin(layer, tokens, grid, mask=None):
    batch, length, dim = tokens.shape
    d = dim // layer.num_heads
    out = torch.zeros_like(tokens)
    for n in range(batch):
        real = [j for j in range(length) if mask is None or mask[n, j]]
        if not real:
            continue
        heads = torch.zeros(length, dim, dtype=tokens.dtype)
        for h in range(layer.num_heads):
            part = [tokens[n] @ layer.qkv.weight[p * dim + h * d: p * dim + (h + 1) * d].T + (
                0 if layer.qkv.bias is None else layer.qkv.bias[p * dim + h * d: p * dim + (h + 1) * d]) for p in range(3)]
            q, k, v = (t[real] for t in part)
            count = min(layer.num_landmarks, length, len(real))
            q_mean, k_mean = landmarks(q, count), landmarks(k, count)
            y = softmax_rows(q, k_mean) @ inverse(softmax_rows(q_mean, k_mean), layer.num_iterations) @ (softmax_rows(q_mean, k) @ v)
            if layer.conv is not None:
                kernel = layer.conv.weight[h, 0, :, 0]
                reach = len(kernel) // 2
                y = y + torch.stack([
                    sum(kernel[s - r + reach] * v[s] for s in range(len(real)) if abs(s - r) <= reach) for r in range(len(real))])
            columns = torch.zeros(length, d, dtype=tokens.dtype).index_put((torch.tensor(real),), y)
            heads = torch.cat([heads[:, : h * d], columns, heads[:, (h + 1) * d:]], 1)
        sample = heads @ layer.proj.weight.T + layer.proj.bias
        rest = torch.zeros(length, 1, dtype=tokens.dtype).index_put((torch.tensor(real),), torch.ones(1, dtype=tokens.dtype))
        out = out.index_put((torch.tensor(n),), sample * rest)
    return out
