"""Spatial-reduction attention: every position attends to a smaller map of keys and values."""

from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.layers.base import HeadsLayer, as_map, map_to_tokens
from layerzoo.ops.attention import attend
from layerzoo.ops.reduction import masked_pool, parts, project, seen_cells, whole_cells
from layerzoo.ops.token_maps import check_count


class SpatialReduction(HeadsLayer):
    """Softmax attention to cells of a map.

    **Paper**: PVT v2, arXiv 2106.13797, after PVT, arXiv 2102.12122.

    y = W_o concat_h(softmax(q_h K_h^T / sqrt(d)) V_h), q linear in x, K and V linear in z, one z for each cell: with pool_size=None

    - z = LayerNorm(conv(x)), cells of r x r places, kernel and stride r (z = x for r = 1); else
    - z = gelu(LayerNorm(W mean(x))), P x P cells that cover the map, whatever its size, the paper's "linear" form.

    **Shape**: (B, C, H, W) or (B, N, C) with `grid=` -> the same. Cells at the border are filled with zeros.

    **Cost**: time N^2 C / r^2 + N C^2, or N P^2 C + N C^2; memory N C.

    **Args**:
        dim: channels C.
        reduction: r, side of a cell in positions; 4, the paper's at its second of four resolutions (8, 4, 2, 1).
        pool_size: P in cells, instead of the convolution; None = convolution; the paper's is 7.
        num_heads: h; None = one head per 32 channels.
        qkv_bias: bias in q, k, v; on, as in the paper's code.

    **Raises**: ValueError for a reduction or pool_size below 1 and num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("spatial_reduction", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: a cell that the border cuts is kept, filled with zeros (there its places are seen by nobody). The means
    are those of real positions.
    """

    card = Card(
        title="Spatial-reduction attention (PVT v2)", paper="2106.13797", year=2021, cost=(2, 1), needs_grid=True,
        sizes={"tiny": {"dim": 8, "num_heads": 2, "reduction": 2}, "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 15, "num_heads": 3, "reduction": 3, "qkv_bias": False}},
        limit={"equals": "mhsa", "options": {"reduction": 1}, "grid": (4, 6)},
        differs="a cell that the border cuts is kept, filled with zeros; means are those of real positions")

    def __init__(
        self, dim: int, *, reduction: int = 4, pool_size: int | None = None, num_heads: int | None = None, qkv_bias: bool = True,
    ):
        super().__init__(dim, num_heads, qkv_bias)
        check_count("reduction", reduction)
        self.reduction, self.pool_size = reduction, pool_size
        if pool_size is not None:
            check_count("pool_size", pool_size)
            self.conv, self.norm = nn.Conv2d(dim, dim, 1), nn.LayerNorm(dim)
        elif reduction > 1:
            self.conv, self.norm = nn.Conv2d(dim, dim, reduction, stride=reduction), nn.LayerNorm(dim)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        cells, seen = self.reduce(tokens, grid, mask)
        (q,), (k, v) = (project(x, part, self.num_heads) for x, part in zip((tokens, cells), parts(self.qkv)))
        return self.merge(attend(q, k, v, seen))

    def reduce(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What keys and values are made of (B, n, C), and which of it is seen (B, n)."""
        x = as_map(tokens, grid)
        if self.pool_size is not None:
            x, seen = masked_pool(x, mask, self.pool_size)
            return F.gelu(self.norm(map_to_tokens(self.conv(x)))), seen
        if self.reduction == 1:
            return tokens, mask
        x = self.conv(whole_cells(x, self.reduction))
        return self.norm(map_to_tokens(x)), seen_cells(mask, grid, self.reduction)
