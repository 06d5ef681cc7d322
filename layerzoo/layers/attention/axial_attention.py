"""Axial attention: every position attends to its row and to its column."""

from torch import Tensor

from layerzoo.card import Card
from layerzoo.layers.base import HeadsLayer, TokenLayer
from layerzoo.ops.attention import attend


class AxialAttention(TokenLayer):
    """Multi-head self-attention along each axis, summed.

    **Paper**: Axial Attention in Multidimensional Transformers, arXiv 1912.12180.

    y[i, j] = A_rows(x[i, :])_j + A_columns(x[:, j])_i, with A_rows and A_columns softmax attention with weights of their own.

    **Shape**: (B, C, H, W) or (B, N, C) with `grid=` -> the same.

    **Cost**: time N (H + W) C + N C^2, that is N^1.5 on a square map; memory N C.

    **Args**:
        dim: channels C.
        num_heads: h, along each axis; None = one head per 32 channels.
        qkv_bias: bias in q, k, v; on, as in ViT.
        causal: position i sees what lies before it in its row and above it in its column: earlier ones in row-major order, though not all.

    **Raises**: ValueError for num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("axial_attention", dim=64, num_heads=4)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: the two axes are summed in one layer, each with its own weights, as public code does; there layers
    of one axis follow each other, and its decoder brings in all earlier rows by a second stack. q, k, v have biases.
    """

    card = Card(
        title="Axial attention", paper="1912.12180", year=2019, survey="FP", cost=(1.5, 1), causal=True, needs_grid=True,
        symmetry="translation",
        sizes={"tiny": {"dim": 8, "num_heads": 2}, "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 12, "num_heads": 3, "qkv_bias": False}},
        differs="the two axes are summed in one layer, each with its own weights; there they follow each other. q, k, v have biases")

    def __init__(self, dim: int, *, num_heads: int | None = None, qkv_bias: bool = True, causal: bool = False):
        super().__init__(dim)
        self.causal = causal
        self.rows = HeadsLayer(dim, num_heads, qkv_bias)
        self.columns = HeadsLayer(dim, num_heads, qkv_bias)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        x = tokens.unflatten(1, grid)
        mask = None if mask is None else mask.unflatten(1, grid)
        along_rows = _attend_lines(self.rows, x, mask, self.causal)
        along_columns = _attend_lines(self.columns, x.transpose(1, 2), None if mask is None else mask.transpose(1, 2), self.causal)
        return (along_rows + along_columns.transpose(1, 2)).flatten(1, 2)


def _attend_lines(heads: HeadsLayer, lines: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Attention within each of the lines (B, lines, places, C), with a mask (B, lines, places)."""
    q, k, v = heads.split(lines.flatten(0, 1))
    y = heads.merge(attend(q, k, v, None if mask is None else mask.flatten(0, 1), causal=causal))
    return y.unflatten(0, lines.shape[:2])
