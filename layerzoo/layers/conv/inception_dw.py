"""Inception depthwise convolution: a small square, a row and a column kernel for a few channels each; the others pass."""

import torch
from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import Layer, check_odd


class InceptionDW(Layer):
    """A large depthwise kernel, decomposed.

    **Paper**: InceptionNeXt, arXiv 2303.16900.

    y = [x_0, W_s * x_s, W_w * x_w, W_h * x_h] for the channels of x in this order, r C of each of the last three, rounded down but at
    least 1; W_s of s x s, W_w of 1 x k and W_h of k x 1 are depthwise, with a bias, and x = 0 outside the map.

    **Shape**: (B, C, H, W) -> the same.

    **Cost**: time N C r (s^2 + 2 k); memory N C.

    **Args**:
        dim: channels C.
        square_kernel_size: s, in positions, odd; 3, the paper's.
        band_kernel_size: k, in positions, odd; 11, the paper's.
        branch_ratio: r, share of the channels of each branch, above 0 and at most 1/3; 1/8, the paper's.

    **Raises**: ValueError for a dim below 3, kernel sizes that are not odd, and a branch_ratio that is not above 0 and at most 1/3.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("inception_dw", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: at least one channel in each branch.
    """

    card = Card(
        title="Inception depthwise convolution", paper="2303.16900", year=2023, cost=(1, 1), mask=False, needs_grid=True,
        symmetry="translation", sizes={"tiny": {"dim": 8}, "base": {"dim": 64},
               "odd": {"dim": 7, "square_kernel_size": 5, "band_kernel_size": 7, "branch_ratio": 0.3}},
        limit={"equals": "identity", "options": {"square_kernel_size": 1, "band_kernel_size": 1}, "grid": (4, 6),
               "set": {"square.weight": "ones", "square.bias": "zeros", "row.weight": "ones", "row.bias": "zeros", "column.weight": "ones",
                       "column.bias": "zeros"}},
        differs="at least one channel in each branch",
        cannot={"mask": "it is a layer of maps, and a map has no places to leave out"})

    def __init__(self, dim: int, *, square_kernel_size: int = 3, band_kernel_size: int = 11, branch_ratio: float = 0.125):
        super().__init__(dim)
        check_odd("square_kernel_size", square_kernel_size)
        check_odd("band_kernel_size", band_kernel_size)
        if dim < 3:
            raise bad_value("dim of InceptionDW", got=dim, expected="at least 3, one for each branch", do="Pass more channels.")
        if not 0 < branch_ratio <= 1 / 3:
            raise bad_value(
                "branch_ratio", got=branch_ratio, expected="above 0 and at most 1/3, as there are three branches",
                do="The paper has 0.125.")
        branch = max(1, int(dim * branch_ratio))
        self.split = (dim - 3 * branch, branch, branch, branch)
        self.square = _depthwise(branch, square_kernel_size, square_kernel_size)
        self.row = _depthwise(branch, 1, band_kernel_size)
        self.column = _depthwise(branch, band_kernel_size, 1)

    def mix(self, x: Tensor) -> Tensor:
        kept, square, row, column = x.split(self.split, 1)
        return torch.cat([kept, self.square(square), self.row(row), self.column(column)], 1)


def _depthwise(channels: int, height: int, width: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, (height, width), padding=(height // 2, width // 2), groups=channels)
