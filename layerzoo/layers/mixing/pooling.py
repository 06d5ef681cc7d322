"""Pooling: every place receives the mean of its neighbours, less itself."""

from torch import Tensor
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.layers.base import Layer, check_odd


class Pooling(Layer):
    """Average pooling as a layer; no parameters.

    **Paper**: MetaFormer Is Actually What You Need for Vision (PoolFormer), arXiv 2111.11418.

    y[i, j] = mean of x over the k x k places around (i, j) that lie in the map - x[i, j].

    The subtraction cancels the residual of the block around it.

    **Shape**: (B, C, H, W) -> the same.

    **Cost**: time N C k^2; memory N C.

    **Args**:
        dim: channels C.
        kernel_size: k, in positions, odd; 3, the paper's.

    **Raises**: ValueError for a kernel_size that is not odd.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("pooling", dim=1)(torch.tensor([[[[0.0, 4.0, 2.0]]]]))
        tensor([[[[ 2., -2.,  1.]]]])

    **Differs from the paper**: nothing.
    """

    card = Card(
        title="Pooling", paper="2111.11418", year=2021, cost=(1, 1), mask=False, needs_grid=True, symmetry="translation",
        sizes={"tiny": {"dim": 8}, "base": {"dim": 64}, "odd": {"dim": 5, "kernel_size": 5}},
        cannot={"mask": "it is a layer of maps, and a map has no places to leave out"})

    def __init__(self, dim: int, *, kernel_size: int = 3):
        super().__init__(dim)
        check_odd("kernel_size", kernel_size)
        self.kernel_size = kernel_size

    def mix(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.kernel_size, 1, self.kernel_size // 2, count_include_pad=False) - x
