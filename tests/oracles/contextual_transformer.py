"""The contextual transformer layer, one place and one offset at a time."""

import torch


def twin(layer, tokens, grid, mask=None):
    height, width = grid
    size, half, dim = layer.kernel_size, layer.kernel_size // 2, layer.dim
    each, shared = layer.key.weight.shape[1], dim // layer.num_heads
    first, _, second = layer.weights
    down, _, up = layer.fuse
    out = []
    for n in range(len(tokens)):
        seen = [j for j in range(height * width) if mask is None or mask[n, j]]
        x = tokens[n] if mask is None else tokens[n] * mask[n, :, None]
        static, dynamic = [], []
        for i in range(height * width):
            around = [(y, z, (i // width + y - half) * width + i % width + z - half) for y in range(size) for z in range(size)
                      if 0 <= i // width + y - half < height and 0 <= i % width + z - half < width]
            key = torch.zeros(dim, dtype=x.dtype)
            for y, z, j in around:
                groups = layer.key.weight[:, :, y, z].unflatten(0, (-1, each)), x[j].unflatten(0, (-1, each))
                key = key + torch.einsum("goi,gi->go", *groups).flatten()
            static.append(key.relu())
            hidden = (first.weight[:, :, 0, 0] @ torch.cat([x[i], static[-1]]) + first.bias).relu()
            weights = (second.weight[:, :, 0, 0] @ hidden + second.bias).reshape(layer.num_heads, size, size)
            total = torch.zeros(dim, dtype=x.dtype)
            for y, z, j in around:
                total = total + weights[:, y, z].repeat_interleave(shared) * (layer.value.weight[:, :, 0, 0] @ x[j])
            dynamic.append(total * total.sigmoid())
        static, dynamic = torch.stack(static), torch.stack(dynamic)
        mean = sum((static[j] + dynamic[j] for j in seen), torch.zeros(dim, dtype=x.dtype)) / max(len(seen), 1)
        share = (up.weight @ (down.weight @ mean + down.bias).relu() + up.bias).sigmoid()
        out.append(share * static + (1 - share) * dynamic)
    y = torch.stack(out)
    return y if mask is None else y * mask[..., None]
