"""CoAtNet's attention: exp(score + table at the offset), one pair at a time."""

import torch


def twin(layer, tokens, grid, mask=None):
    batch, length, dim = tokens.shape
    d = dim // layer.num_heads
    table = layer.relative_bias.table
    if grid != layer.grid:
        size = [2 * side - 1 for side in grid]
        table = torch.nn.functional.interpolate(table[None], size=size, mode="bilinear", align_corners=True)[0]
    place = [divmod(i, grid[1]) for i in range(length)]
    out = []
    for n in range(batch):
        heads = []
        for h in range(layer.num_heads):
            q, k, v = (tokens[n] @ layer.qkv.weight[s].T + layer.qkv.bias[s] for s in (slice(p * dim + h * d, p * dim + (h + 1) * d) for p in range(3)))
            rows = []
            for i in range(length):
                seen = [j for j in range(length) if mask is None or mask[n, j]]
                weights = [
                    (q[i] @ k[j] / d**0.5 + table[h, place[i][0] - place[j][0] + grid[0] - 1, place[i][1] - place[j][1] + grid[1] - 1]).exp() for j in seen]
                rows.append(sum(w * v[j] for w, j in zip(weights, seen)) / sum(weights) if seen else torch.zeros(d, dtype=tokens.dtype))
            heads.append(torch.stack(rows))
        out.append(torch.cat(heads, 1) @ layer.proj.weight.T + layer.proj.bias)
    y = torch.stack(out)
    return y if mask is None else y * mask[..., None]
