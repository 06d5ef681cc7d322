"""External attention, one position and one memory at a time, normalised twice."""

import torch


def twin(layer, tokens, grid, mask=None):
    batch, length, dim = tokens.shape
    d = dim // layer.num_heads
    out = []
    for n in range(batch):
        seen = [j for j in range(length) if mask is None or mask[n, j]]
        q = [layer.query.weight @ tokens[n, i] + (0 if layer.query.bias is None else layer.query.bias) for i in range(length)]
        rows = []
        for i in range(length):
            heads = []
            for part in (slice(h * d, h * d + d) for h in range(layer.num_heads)):
                shares = [(q[i][part] @ key).exp() / sum((q[j][part] @ key).exp() for j in seen) for key in layer.memory_keys]
                heads.append(sum(share / sum(shares) * value for share, value in zip(shares, layer.memory_values)))
            row = layer.proj.weight @ torch.cat(heads) + layer.proj.bias
            rows.append(row if i in seen else 0 * row)
        out.append(torch.stack(rows))
    return torch.stack(out)
