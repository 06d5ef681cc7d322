"""Two-dimensional local attention of the Image Transformer: each block of the map attends to itself and a margin around it."""

import torch
from torch import Tensor

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import HeadsLayer
from layerzoo.ops.token_maps import join_places
from layerzoo.ops.windows import attend_blocks, blocks_2d, windows_2d


class ImageTransformer(HeadsLayer):
    """Attention of query blocks to their memory blocks.

    **Paper**: Image Transformer, arXiv 1802.05751.

    y_i = W_o concat_h(sum_j softmax_j(q_i k_j / sqrt(d)) v_j), j over the memory block of i: its query block of h_q x w_q places and
    h_m rows above and below, w_m columns on the left and on the right. All queries of a block see the same keys.

    With causal there are no rows below, and query i sees the places j <= i of its memory block in row-major order of the map.

    **Shape**: (B, C, H, W) or (B, N, C) with `grid=` -> the same, any H and W.

    **Cost**: time N C m + N C^2 for m = (h_q + 2 h_m) (w_q + 2 w_m); memory N C m / (h_q w_q), causal N m more.

    **Args**:
        dim: channels C.
        block_size: (h_q, w_q), in positions; 8 x 8, a quarter of the paper's 256 places, which are for 3072 and more.
        memory: (h_m, w_m), in positions; half a block, so that a block sees four times its places.
        num_heads: h; None = one head per 32 channels.
        qkv_bias: bias in q, k, v; on, as in ViT.
        causal: position i sees positions up to i, in row-major order.

    **Raises**: ValueError for a block_size below 1, a memory below 0, and num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("image_transformer", dim=64, block_size=(4, 4), memory=(2, 2))(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: causal order is row by row over the whole map (there block after block), so that places above on the
    right are past; not causal, the margin goes below as well; the map's border is seen by nobody; q, k, v have biases.
    """

    card = Card(
        title="Image Transformer 2D local attention", paper="1802.05751", year=2018, survey="FP", cost=(1, 1), causal=True, needs_grid=True,
        sizes={"tiny": {"dim": 8, "num_heads": 2, "block_size": (2, 3), "memory": (1, 2)}, "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 15, "num_heads": 3, "block_size": (3, 2), "memory": (4, 0), "qkv_bias": False}},
        limit={"equals": "mhsa", "options": {"block_size": (4, 8)}, "grid": (4, 6)},
        differs="causal order is row by row over the whole map, not block after block; else the margin goes below too; q, k, v have biases")

    def __init__(
        self, dim: int, *, block_size: tuple[int, int] = (8, 8), memory: tuple[int, int] = (4, 4), num_heads: int | None = None,
        qkv_bias: bool = True, causal: bool = False,
    ):
        super().__init__(dim, num_heads, qkv_bias)
        if len(block_size) != 2 or min(block_size) < 1:
            expected = "(rows, columns) of a query block, both >= 1"
            raise bad_value("block_size", got=block_size, expected=expected, do="Choose one such as (8, 8).")
        if len(memory) != 2 or min(memory) < 0:
            expected = "(rows, columns) around a query block, both >= 0"
            raise bad_value("memory", got=memory, expected=expected, do="Choose half of block_size.")
        self.block_size, self.memory, self.causal = tuple(block_size), tuple(memory), causal

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        size = tuple(min(b, side) for b, side in zip(self.block_size, grid))
        margin = tuple(min(m, (side - 1) // s * s) for m, s, side in zip(self.memory, size, grid))  # 0 where there is one block
        span = margin[0] + size[0] + (0 if self.causal else margin[0]), size[1] + 2 * margin[1]
        q, kv = self.qkv(tokens).unflatten(1, grid).tensor_split((self.dim,), dim=-1)
        seen = None
        if mask is not None or self.causal or any(side % s or m for side, s, m in zip(grid, size, margin)):
            real = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else mask
            seen = self.seen(real.unflatten(1, grid)[..., None], size, span, margin)
        y = attend_blocks(blocks_2d(q, size), windows_2d(kv, size, span, margin), self.num_heads, seen)
        return self.proj(join_places(y.transpose(1, 2), grid, size))

    def seen(self, real: Tensor, size: tuple[int, int], span: tuple[int, int], margin: tuple[int, int]) -> Tensor:
        """(B, n, 1 or queries, keys): which keys of its memory block a query sees, from the real places (B, H, W, 1)."""
        keys, asks = windows_2d(real, size, span, margin).mT, blocks_2d(real, size)
        if not self.causal:
            return keys | ~asks.any(2, keepdim=True)  # a block of padding sees anything rather than nothing: its output is dropped
        key_row, key_column, row, column = (torch.arange(s, device=real.device) for s in (*span, *size))
        stride = 2 * span[1]  # more than any two columns are apart
        key_order = ((key_row - margin[0])[:, None] * stride + key_column - margin[1]).flatten()
        order = (row[:, None] * stride + column).flatten()
        return keys & (key_order <= order[:, None]) | ~asks
