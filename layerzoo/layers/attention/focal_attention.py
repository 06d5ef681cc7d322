"""Focal attention: positions attend to their window and its margin one by one, and to the surroundings window by window."""

import torch
from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import HeadsLayer
from layerzoo.ops.neighborhoods import around, attend_windows, hidden, real_places, seen_block, table_scores
from layerzoo.ops.reduction import parts, project
from layerzoo.ops.token_maps import check_count
from layerzoo.ops.windows import blocks_2d, windows_2d
from layerzoo.positions.relative_bias import RelativeBias


class FocalAttention(HeadsLayer):
    """Self-attention at two granularities.

    **Paper**: Focal Self-attention for Local-Global Interactions in Vision Transformers, arXiv 2107.00641.

    y_i = W_o concat_h(sum_j softmax_j(q_i k_j / sqrt(d) + b_ij) v_j), j over the window of w x w positions that holds i, over the e
    positions around it on each side, and over the r x r windows around and with it, each pooled to one token
    x_u = sum_p a_p x_p + c of its places p, of which k and v are the same linear maps. b_ij = T_h[i - j] for single positions and
    U_h[offset of the windows] for pooled ones.

    **Shape**: (B, C, H, W) or (B, N, C) with `grid=` -> the same, any H and W.

    **Cost**: time N ((w + 2 e)^2 + r^2) C + N C^2; memory N C + N ((w + 2 e)^2 + r^2) h.

    **Args**:
        dim: channels C.
        window_size: w, in positions; 7, the paper's.
        expand: e, in positions; 3, the paper's: its focal region of 13 x 13.
        focal_region: r, in windows, odd; 5, of the paper's 7, 5, 3 and 1 that for maps of 28 x 28; 0 = no pooled tokens.
        num_heads: h; None = one head per 32 channels, the paper's.
        qkv_bias: bias in q, k, v; on, as in the paper's code.

    **Raises**: ValueError for a window_size below 1, an expand below 0, an even focal_region, and num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("focal_attention", dim=64, window_size=4, expand=1)(torch.randn(2, 64, 9, 5)).shape
        torch.Size([2, 64, 9, 5])

    **Differs from the paper**: one pooled level, as all its models have; beyond the border, windows are not seen that hold padding alone.
    """

    card = Card(
        title="Focal self-attention", paper="2107.00641", year=2021, cost=(1, 1), needs_grid=True,
        sizes={"tiny": {"dim": 8, "num_heads": 2, "window_size": 2, "expand": 1, "focal_region": 3}, "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 15, "num_heads": 3, "window_size": 3, "expand": 4, "focal_region": 1, "qkv_bias": False}},
        limit={"equals": "mhsa", "options": {"window_size": 6, "focal_region": 0}, "grid": (4, 6), "set": {"relative_bias.table": "zeros"}},
        differs="one pooled level, as all models of the paper have; windows of padding alone are not seen")

    def __init__(
        self, dim: int, *, window_size: int = 7, expand: int = 3, focal_region: int = 5, num_heads: int | None = None,
        qkv_bias: bool = True,
    ):
        super().__init__(dim, num_heads, qkv_bias)
        check_count("window_size", window_size)
        if expand < 0:
            raise bad_value("expand", got=expand, expected="a whole number >= 0 of positions around a window", do="The paper's is 3.")
        if focal_region < 0 or focal_region and focal_region % 2 == 0:
            raise bad_value("focal_region", got=focal_region, expected="an odd number of windows, or 0", do="The paper has 7, 5, 3 and 1.")
        self.window_size, self.expand, self.focal_region = window_size, expand, focal_region
        self.relative_bias = RelativeBias(self.num_heads, grid=(window_size + expand, window_size + expand))
        if focal_region:
            self.pool = nn.Linear(window_size**2, 1)
            nn.init.constant_(self.pool.weight, window_size**-2)
            nn.init.zeros_(self.pool.bias)
            self.region_bias = nn.Parameter(nn.init.trunc_normal_(torch.empty(self.num_heads, 1, focal_region**2), std=0.02))

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        window = self.window_size, self.window_size
        cut, x, real = around(grid, window, self.expand), tokens.unflatten(1, grid), real_places(tokens, grid, mask)
        q, k, v = (t.flatten(0, 1).unflatten(1, grid) for t in self.split(tokens))
        k, v, seen = windows_2d(k, *cut), windows_2d(v, *cut), seen_block(real, cut)
        scores = table_scores(self.relative_bias.table, cut)
        if self.focal_region:
            cells = tuple(-(-side // self.window_size) for side in grid)
            region = (1, 1), (self.focal_region,) * 2, (self.focal_region // 2,) * 2
            coarse = (t.flatten(0, 1).unflatten(1, cells) for t in self.pooled(blocks_2d(x, window)))
            k, v = (torch.cat([fine, windows_2d(t, *region)], 2) for fine, t in zip((k, v), coarse))
            held = blocks_2d(real, window).any(2).unflatten(1, cells)
            seen = torch.cat([seen, windows_2d(held, *region).mT], 3)
            scores = torch.cat([scores, self.region_bias.expand(-1, scores.shape[1], -1)], 2)
        y = attend_windows(blocks_2d(q, cut[0]), k, v, hidden(scores, seen), grid, cut)
        return self.merge(y.unflatten(0, (-1, self.num_heads)))

    def pooled(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, h, n, d) of the windows (B, n, places, C), pooled."""
        return project(self.pool(places.mT).squeeze(-1), parts(self.qkv)[1], self.num_heads)
