"""Linformer: keys and values are projected along the sequence to a fixed number of rows."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import HeadsLayer, check_grid
from layerzoo.ops.attention import attend
from layerzoo.ops.tables import resize_places


class Linformer(HeadsLayer):
    """Low-rank attention.

    **Paper**: Linformer, arXiv 2006.04768.

    y = W_o concat_h(softmax(q_h (E k_h)^T / sqrt(d)) F v_h), with E and F learned, m x N, the same for all heads.

    On a map of another size than `grid` each row of E and F is resized bilinearly as a map and divided by the growth of N, so that
    E k stays the same on an enlarged k.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same.

    **Cost**: time N C m + N C^2; memory N C + N m; 2 N m parameters beside q, k, v.

    **Args**:
        dim: channels C.
        grid: (H, W) the projections are built for.
        num_heads: h; None = one head per 32 channels.
        num_landmarks: m, projected rows; 64, a quarter of the paper's 256, which is for 512 tokens and more.
        share_kv: F = E, the paper's key-value sharing; off.
        qkv_bias: bias in q, k, v; on, as in ViT.

    **Raises**: ValueError for a grid that is not (H, W), num_landmarks below 1, num_heads that do not divide dim, and in `forward`
    for tokens of another number than the grid's without `grid=`.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("linformer", dim=64, grid=(8, 8))(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: other lengths than the built one run, with resized projections; masked tokens are zeros to E and F.
    """

    card = Card(
        title="Linformer", paper="2006.04768", year=2020, survey="LR", cost=(1, 1), needs_grid=True,
        sizes={"tiny": {"dim": 8, "grid": (3, 4), "num_heads": 2, "num_landmarks": 3}, "base": {"dim": 64, "grid": (8, 8), "num_heads": 4, "num_landmarks": 32},
               "odd": {"dim": 15, "grid": (5, 3), "num_heads": 3, "num_landmarks": 4, "share_kv": True}},
        limit={"equals": "mhsa", "options": {"grid": (4, 6), "num_landmarks": 24}, "grid": (4, 6),
               "set": {"key_rows": "identity", "value_rows": "identity"}},
        differs="other lengths than the built one run, with resized projections; masked tokens are zeros to the projections",
        cannot={"padding": "each column of the projections belongs to a place of the grid, and padding makes another grid"})

    def __init__(
        self, dim: int, *, grid: tuple[int, int], num_heads: int | None = None, num_landmarks: int = 64, share_kv: bool = False, qkv_bias: bool = True,
    ):
        super().__init__(dim, num_heads, qkv_bias)
        if num_landmarks < 1:
            raise bad_value("num_landmarks", got=num_landmarks, expected="a whole number >= 1", do="Choose one such as 64.")
        self.grid = check_grid(grid)
        shape = num_landmarks, grid[0] * grid[1]
        self.key_rows = nn.Parameter(torch.randn(shape) * num_landmarks**-0.5)  # as Johnson and Lindenstrauss, the paper's proof
        self.value_rows = None if share_kv else nn.Parameter(torch.randn(shape) * num_landmarks**-0.5)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        weights, biases = self.qkv.weight.chunk(3), (None,) * 3 if self.qkv.bias is None else self.qkv.bias.chunk(3)
        key_rows = self._resized(self.key_rows, grid)
        value_rows = key_rows if self.value_rows is None else self._resized(self.value_rows, grid)
        q = F.linear(tokens, weights[0], biases[0])
        k, v = (_projected(rows, tokens, mask, *to) for rows, *to in ((key_rows, weights[1], biases[1]), (value_rows, weights[2], biases[2])))
        return self.merge(attend(*(x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for x in (q, k, v))))

    def _resized(self, rows: Tensor, grid: tuple[int, int]) -> Tensor:
        return resize_places(rows, self.grid, grid) * (rows.shape[1] / (grid[0] * grid[1]))


def _projected(rows: Tensor, tokens: Tensor, mask: Tensor | None, weight: Tensor, bias: Tensor | None) -> Tensor:
    """rows (m, N) times the keys or values of tokens (B, N, C): E (X W + b) = (E X) W + (E 1) b has fewer rows to multiply by W."""
    y = F.linear(rows @ tokens, weight)
    if bias is None:
        return y
    total = rows.sum(1) if mask is None else mask.to(rows.dtype) @ rows.T
    return y + total.unsqueeze(-1) * bias
