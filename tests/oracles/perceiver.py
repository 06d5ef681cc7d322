"""Perceiver, one sample at a time, each attention one query and one head at a time."""

import math

import torch


def linear(layer, x):
    y = x @ layer.weight.T
    return y if layer.bias is None else y + layer.bias


def normed(norm, x):
    centred = x - x.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def attended(q, k, v, heads):
    """Rows of q ask rows of k; each head has its own columns."""
    d, rows = q.shape[1] // heads, []
    for query in q:
        row = []
        for part in (slice(h * d, h * d + d) for h in range(heads)):
            weights = [(query[part] @ key[part] / math.sqrt(d)).exp() for key in k]
            row.append(sum(w * value[part] for w, value in zip(weights, v)) / sum(weights))
        rows.append(torch.cat(row))
    return torch.stack(rows)


def mlp(block, x):
    hidden = linear(block.fc1, x)
    return linear(block.fc2, hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2)


def twin(layer, tokens, grid, mask=None):
    width, heads, out = layer.latents.shape[1], layer.num_heads, []
    for n in range(len(tokens)):
        seen = [j for j in range(tokens.shape[1]) if mask is None or mask[n, j]]
        z, kv = layer.latents, linear(layer.read_kv, tokens[n][seen])
        z = z + linear(layer.read_proj, attended(linear(layer.read_q, normed(layer.read_norm, z)), kv[:, :width], kv[:, width:], heads))
        z = z + mlp(layer.blocks[0], normed(layer.norms[0], z))
        for i in range(1, len(layer.blocks), 2):
            qkv = linear(layer.blocks[i].qkv, normed(layer.norms[i], z))
            z = z + linear(layer.blocks[i].proj, attended(*qkv.split(width, 1), heads))
            z = z + mlp(layer.blocks[i + 1], normed(layer.norms[i + 1], z))
        kv = linear(layer.write_kv, normed(layer.write_norm, z))
        y = linear(layer.proj, attended(linear(layer.write_q, tokens[n]), kv[:, :width], kv[:, width:], heads))
        out.append(y if mask is None else y * mask[n, :, None])
    return torch.stack(out)
