"""Quadratic attention: heads that look at learned offsets and at nothing else, of which a convolution is a special case."""

from layerzoo.card import Card
from layerzoo.layers.hybrid.base import WideHeads
from layerzoo.positions.quadratic import Quadratic


class QuadraticAttention(WideHeads):
    """Multi-head attention by the isotropic quadratic encoding alone.

    **Paper**: On the Relationship between Self-Attention and Convolutional Layers, arXiv 1911.03584.

    y_i = W_o (b + sum_h sum_j softmax_j(-s_h^2 |j - i - c_h|^2 / 2) W_h x_j), j - i in rows and columns. With c_h on the places of a K x K
    kernel and large s_h it is the convolution with the kernel W_o W_h, as `layerzoo.conv_to_attention` makes it. A Gaussian over places is one
    over rows times one over columns, so no matrix of places is made.

    **Shape**: (B, C, H, W) or (B, N, C) with `grid=` -> the same, any H and W.

    **Cost**: time h N C (H + W) + h N C^2; memory h N C. With a mask N^2 in place of N (H + W), and h N^2.

    **Args**:
        dim: channels C of the input, the output and of every head.
        num_heads: h; 9, the paper's, for the places of a 3x3 kernel.

    **Raises**: ValueError for num_heads below 1, and in `forward` for tokens without `grid=`.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("quadratic_attention", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: no dropout of attention weights.
    """

    card = Card(
        title="Self-attention with quadratic encoding", paper="1911.03584", year=2019, cost=(1.5, 1), needs_grid=True,
        sizes={"tiny": {"dim": 8, "num_heads": 2}, "base": {"dim": 64}, "odd": {"dim": 15, "num_heads": 3}},
        differs="no dropout of attention weights")

    def __init__(self, dim: int, *, num_heads: int = 9):
        super().__init__(dim, num_heads)
        self.position = Quadratic(num_heads)
