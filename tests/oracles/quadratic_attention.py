"""Attention by a quadratic encoding: a softmax over the places, one query at a time."""

import torch


def twin(layer, tokens, grid, mask=None):
    spreads = layer.position.spreads
    matrices = spreads if spreads.ndim == 3 else [s * torch.eye(2, dtype=s.dtype) for s in spreads]

    def score(h, i, j):
        offset = torch.tensor([j // grid[1] - i // grid[1], j % grid[1] - i % grid[1]], dtype=tokens.dtype)
        return -0.5 * (matrices[h] @ (offset - layer.position.centers[h])).square().sum()

    return mixed(layer, tokens, mask, lambda h, n: score)


def mixed(layer, tokens, mask, score_of):
    """Wide heads of any score: `score_of(h, n)` gives the function (h, i, j) for head h of sample n."""
    batch, length, dim = tokens.shape
    out = []
    for n in range(batch):
        seen = [j for j in range(length) if mask is None or mask[n, j]]
        rows = []
        for i in range(length):
            heads = []
            for h in range(layer.num_heads):
                weights = torch.stack([score_of(h, n)(h, i, j) for j in seen]).softmax(0)
                heads.append(weights @ tokens[n, seen])
            rows.append(torch.cat(heads) @ layer.value.weight.T + layer.value.bias)
        out.append(torch.stack(rows) @ layer.proj.weight.T + layer.proj.bias)
    y = torch.stack(out)
    return y if mask is None else y * mask[..., None]
