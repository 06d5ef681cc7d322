"""Grid attention: the map is cut into w x w cells, and the places at the same place of their cells attend to each other."""

from torch import Tensor

from layerzoo.card import Card
from layerzoo.layers.attention.window_attention import WindowAttention
from layerzoo.ops.attention import attend
from layerzoo.ops.token_maps import join_places, split_places


class GridAttention(WindowAttention):
    """Multi-head self-attention among w x w places that are spread evenly over the map.

    **Paper**: MaxViT, arXiv 2204.01697.

    y_i = W_o concat_h(sum_j softmax_j(q_i k_j / sqrt(d) + T_h[cell_i - cell_j]) v_j), j over the places that are at the same place of their
    cell as i is of its own. Cells are ceil(H / w) high and ceil(W / w) wide, and counted in rows and columns.

    **Shape**: (B, C, H, W) or (B, N, C) with `grid=` -> the same, any H and W.

    **Cost**: time N w^2 C + N C^2; memory N C + N w^2 h.

    **Args**:
        dim: channels C.
        window_size: w, cells along a side; 7, the paper's.
        num_heads: h; None = one head per 32 channels, the paper's.
        qkv_bias: bias in q, k, v; on, the paper's.

    **Raises**: ValueError for a window_size below 1 and for num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("grid_attention", dim=64, window_size=4)(torch.randn(2, 64, 9, 5)).shape
        torch.Size([2, 64, 9, 5])

    **Differs from the paper**: sides that w does not divide are padded, and the padding is seen by nobody.
    """

    card = Card(
        title="Grid attention of MaxViT", paper="2204.01697", year=2022, cost=(1, 1), needs_grid=True,
        sizes={"tiny": {"dim": 8, "num_heads": 2, "window_size": 4}, "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 15, "num_heads": 3, "window_size": 3, "qkv_bias": False}},
        limit={"equals": "mhsa", "options": {"window_size": 6}, "grid": (4, 6), "set": {"relative_bias.table": "zeros"}},
        differs="sides that w does not divide are padded, and the padding is seen by nobody",
        cannot={"padding": "the map is cut into cells by its sides, and padding makes larger cells"})

    def __init__(self, dim: int, *, window_size: int = 7, num_heads: int | None = None, qkv_bias: bool = True):
        super().__init__(dim, window_size=window_size, num_heads=num_heads, qkv_bias=qkv_bias)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        cell = tuple(-(-side // self.window_size) for side in grid)
        x, real = split_places(tokens, grid, cell, mask)
        bias = self._bias(tuple(-(-side // c) for side, c in zip(grid, cell)))
        q, k, v = self.split(x.flatten(0, 1))
        y = self.merge(attend(q, k, v, None if real is None else real.flatten(0, 1), bias))
        return join_places(y.unflatten(0, x.shape[:2]), grid, cell)
