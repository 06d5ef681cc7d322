"""Generalised quadratic attention: each head looks at a learned place through a Gaussian of any shape."""

from layerzoo.card import Card
from layerzoo.layers.hybrid.base import WideHeads
from layerzoo.positions.quadratic import Quadratic


class QuadraticGeneralized(WideHeads):
    """Multi-head attention by a quadratic encoding that is not isotropic.

    **Paper**: On the Relationship between Self-Attention and Convolutional Layers, arXiv 1911.03584, section 4.2.

    y_i = W_o (b + sum_h sum_j softmax_j(-|S_h (j - i - c_h)|^2 / 2) W_h x_j), S_h a learned 2 x 2 matrix: S^T S is the inverse covariance
    of the Gaussian through which head h looks at the place c_h from i.

    **Shape**: (B, C, H, W) or (B, N, C) with `grid=` -> the same, any H and W.

    **Cost**: time h N^2 C + h N C^2; memory h N C + h N^2.

    **Args**:
        dim: channels C of the input, the output and of every head.
        num_heads: h; 9, the paper's.

    **Raises**: ValueError for num_heads below 1, and in `forward` for tokens without `grid=`.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("quadratic_generalized", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: no dropout of attention weights; a 2 x 2 matrix S is learned where the paper learns three numbers of S^T S.
    """

    card = Card(
        title="Self-attention with generalised quadratic encoding", paper="1911.03584", year=2019, cost=(2, 2), needs_grid=True,
        sizes={"tiny": {"dim": 8, "num_heads": 2}, "base": {"dim": 64}, "odd": {"dim": 15, "num_heads": 3}},
        differs="no dropout of attention weights; S is learned, not S^T S")

    def __init__(self, dim: int, *, num_heads: int = 9):
        super().__init__(dim, num_heads)
        self.position = Quadratic(num_heads, isotropic=False)
