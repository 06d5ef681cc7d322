"""Involution: every position makes its own kernel, which all channels of a group share."""

from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import Layer, check_odd
from layerzoo.ops.formats import match_format
from layerzoo.ops.groups import check_groups
from layerzoo.ops.local_sums import local_sums


class Involution(Layer):
    """Involution, the inverse of convolution in what it shares.

    **Paper**: Involution, arXiv 2103.06255.

    y_c[i, j] = sum_{u, v} K_g[i, j, u, v] x_c[i + u, j + v], K[i, j] = V relu(U x[i, j] + r) + b, with u, v from -(k-1)/2 to (k-1)/2,
    g the group of channel c, and x = 0 outside the map.

    **Shape**: (B, C, H, W) -> the same.

    **Cost**: time N C k^2 + N (C^2 + C G k^2) / r; memory N C + N G k^2.

    **Args**:
        dim: channels C.
        kernel_size: k, in positions, odd; 7, the paper's.
        num_groups: G, kernels per position; None = one per 16 channels, the paper's.
        reduction: r, C over the channels between U and V; 4, the paper's.

    **Raises**: ValueError for a kernel_size that is not odd, num_groups that do not divide dim, and a reduction below 1.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("involution", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: no batch norm between U and its relu, so that a sample depends on no other; stride 1.
    """

    card = Card(
        title="Involution", paper="2103.06255", year=2021, cost=(1, 1), mask=False, needs_grid=True, symmetry="translation",
        sizes={"tiny": {"dim": 8, "kernel_size": 3, "num_groups": 2}, "base": {"dim": 64},
               "odd": {"dim": 15, "kernel_size": 5, "num_groups": 3, "reduction": 2}},
        limit={"equals": "identity", "options": {"kernel_size": 1}, "grid": (4, 6), "set": {"span.weight": "zeros", "span.bias": "ones"}},
        differs="no batch norm where the kernels are made; stride 1",
        cannot={"mask": "it is a layer of maps, and a map has no places to leave out"})

    def __init__(self, dim: int, *, kernel_size: int = 7, num_groups: int | None = None, reduction: int = 4):
        super().__init__(dim)
        check_odd("kernel_size", kernel_size)
        if reduction < 1:
            raise bad_value("reduction", got=reduction, expected="a number >= 1, C over the channels between", do="The paper's is 4.")
        self.kernel_size, self.num_groups = kernel_size, check_groups(dim, num_groups)
        hidden = max(dim // reduction, 1)
        self.reduce = nn.Conv2d(dim, hidden, 1)
        self.span = nn.Conv2d(hidden, self.num_groups * kernel_size**2, 1)

    def mix(self, x: Tensor) -> Tensor:
        kernels = self.span(F.relu(self.reduce(x))).unflatten(1, (self.num_groups, self.kernel_size**2))
        return match_format(local_sums(x, kernels, self.kernel_size), x)
