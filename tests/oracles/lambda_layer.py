"""The lambda layer: for each position its own linear function, summed key by key and offset by offset."""

import torch


def twin(layer, tokens, grid, mask=None):
    batch, length, _ = tokens.shape
    y = tokens @ layer.qkv.weight.T
    y = y if layer.qkv.bias is None else y + layer.qkv.bias
    heads, depth, (queries, keys, _) = layer.num_heads, layer.intra_depth, layer.widths
    half, out = layer.offsets.weight.shape[-1] // 2, []
    for n in range(batch):
        seen = [j for j in range(length) if mask is None or mask[n, j]]
        q = y[n, :, :queries].reshape(length, heads, -1)
        k = y[n, :, queries: queries + keys].reshape(length, depth, -1)
        v = y[n, :, queries + keys:].reshape(length, depth, -1)
        content = 0
        for u in range(depth):
            for j in seen:
                content = content + torch.outer(k[j, u].exp() / k[seen, u].exp().sum(0), v[j, u])
        for i in range(length):
            if i not in seen:
                out.append(torch.zeros(layer.dim, dtype=y.dtype))
                continue
            function = content
            for j in seen:
                down, across = j // grid[1] - i // grid[1], j % grid[1] - i % grid[1]
                if max(abs(down), abs(across)) <= half:
                    function = function + sum(
                        torch.outer(layer.offsets.weight[:, u, half + down, half + across], v[j, u]) for u in range(depth))
            out.append((q[i] @ function).flatten())
    return torch.stack(out).unflatten(0, (batch, length))
