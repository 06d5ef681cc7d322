"""Bi-level routing attention: regions choose few regions, and positions attend to those."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.layers.base import HeadsLayer, check_odd
from layerzoo.ops.clusters import rows
from layerzoo.ops.linear_recurrence import full_precision, no_autocast
from layerzoo.ops.token_maps import check_count, convolve, join_places
from layerzoo.ops.windows import attend_blocks, blocks_2d


class BiLevelRouting(HeadsLayer):
    """Softmax attention to the positions of the regions that a region is routed to.

    **Paper**: BiFormer, arXiv 2303.08810.

    y_i = W_o (concat_h(sum_j softmax_j(q_i k_j / sqrt(d)) v_j) + conv(v)_i), j over the regions I(r), r the region of i: the t regions
    with the largest Q_r . K_s, where Q_r and K_r are the mean query and the mean key of region r, of all heads together. conv is
    depthwise over the map.

    **Shape**: (B, C, H, W) or (B, N, C) with `grid=` -> the same, any H and W.

    **Cost**: time N t s^2 C + N C^2, and N^2 C / s^4 to route; memory N t C + N^2 / s^4.

    **Args**:
        dim: channels C.
        region_size: s, side of a region in positions; 4, the paper's at its second of four resolutions.
        top_k: t, regions that a region sees; 4, the paper's there.
        num_heads: h; None = one head per 32 channels, the paper's.
        kernel_size: side of the depthwise convolution in positions; 5, the paper's.
        qkv_bias: bias in q, k, v; on, as in the paper's code.

    **Raises**: ValueError for a region_size or top_k below 1, an even kernel_size and num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("bi_level_routing", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: regions are of a given size (there their number is given); those that the border cuts keep the
    positions they have. Means, which decide where positions look, are made in float32 at least.
    """

    card = Card(
        title="Bi-level routing attention (BiFormer)", paper="2303.08810", year=2023, cost=(2, 2), needs_grid=True,
        sizes={"tiny": {"dim": 8, "num_heads": 2, "region_size": 2, "top_k": 2}, "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 15, "num_heads": 3, "region_size": 3, "top_k": 1, "kernel_size": 3, "qkv_bias": False}},
        limit={"equals": "mhsa", "options": {"region_size": 2, "top_k": 6}, "grid": (4, 6),
               "set": {"conv.weight": "zeros", "conv.bias": "zeros"}},
        differs="regions are of a given size, not of a given number; those that the border cuts keep the positions they have")

    def __init__(
        self, dim: int, *, region_size: int = 4, top_k: int = 4, num_heads: int | None = None, kernel_size: int = 5,
        qkv_bias: bool = True,
    ):
        super().__init__(dim, num_heads, qkv_bias)
        check_count("region_size", region_size)
        check_count("top_k", top_k)
        check_odd("kernel_size", kernel_size)
        self.region_size, self.top_k = region_size, top_k
        self.conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        size = tuple(min(self.region_size, side) for side in grid)
        real = torch.ones_like(tokens[..., 0], dtype=torch.bool) if mask is None else mask
        inside = blocks_2d(real.unflatten(1, grid).unsqueeze(-1), size)
        routes = self.route(blocks_2d(tokens.unflatten(1, grid), size), inside)
        qkv = self.qkv(tokens)
        q, kv = blocks_2d(qkv.unflatten(1, grid), size).tensor_split((self.dim,), dim=-1)
        seen = None
        if mask is not None or any(side % s for side, s in zip(grid, size)):
            seen = _gather(inside, routes).mT
            seen = seen | ~seen.any(-1, keepdim=True)  # padding alone sees anything rather than nothing: its output is dropped
        y = join_places(attend_blocks(q, _gather(kv, routes), self.num_heads, seen).transpose(1, 2), grid, size)
        return self.proj(y + convolve(self.conv, qkv[..., 2 * self.dim:], grid, mask))

    @torch.no_grad()
    def route(self, regions: Tensor, inside: Tensor) -> Tensor:
        """Numbers of the regions that each sees, (B, n, t), from tokens (B, n, places, C), zero where not `inside` (B, n, places, 1)."""
        count = inside.sum(2)
        parts = 2 * self.dim, self.dim
        with no_autocast(regions.device):  # the mean of projections is the projection of the mean
            means = full_precision(regions)[0].sum(2) / count.clamp(min=1)
            weight, bias = self.qkv.weight.split(parts)[0], None if self.qkv.bias is None else self.qkv.bias.split(parts)[0].to(means.dtype)
            q, k = F.linear(means, weight.to(means.dtype), bias).chunk(2, -1)
            scores = (q @ k.mT).masked_fill(count.mT == 0, float("-inf"))
        return scores.topk(min(self.top_k, scores.shape[-1]), sorted=False).indices


def _gather(regions: Tensor, routes: Tensor) -> Tensor:
    """What stands in the routed regions, (B, n, t * places, D), of regions (B, n, places, D)."""
    chosen = rows(regions.flatten(2).unsqueeze(1), routes.unsqueeze(1)).squeeze(1)
    return chosen.unflatten(-1, regions.shape[2:]).flatten(2, 3)
