"""CoordConv: a convolution that also sees where it is."""

import torch
from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.layers.base import Layer, check_odd


class CoordConv(Layer):
    """Convolution of the map and of the coordinates of its places.

    **Paper**: An Intriguing Failing of Convolutional Neural Networks and the CoordConv Solution, arXiv 1807.03247.

    y = b + W * [x, i, j, r] = b + W_x * x + W_c * [i, j, r], with i and j from -1 at the first to 1 at the last row and column,
    r = sqrt(i^2 + j^2) if wanted, and all of them 0 outside the map. A side of one place has coordinate 0.

    The second form is computed: the coordinates are the same for all samples, so they are convolved once and nothing is joined.

    **Shape**: (B, C, H, W) -> the same.

    **Cost**: time N C^2 k^2 + 2 N C k^2 / B; memory N C.

    **Args**:
        dim: channels C.
        kernel_size: k, in positions, odd; 3, since one of 1, common in the paper, would not mix positions.
        radius: also r; off, as in the paper, where it is an option.
        bias: adds b; on, since no batch norm follows.

    **Raises**: ValueError for a kernel_size that is not odd.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("coord_conv", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: r is of the scaled coordinates, there of places counted from the middle of the map.
    """

    card = Card(
        title="CoordConv", paper="1807.03247", year=2018, cost=(1, 1), mask=False, needs_grid=True,
        sizes={"tiny": {"dim": 8}, "base": {"dim": 64}, "odd": {"dim": 5, "kernel_size": 5, "radius": True, "bias": False}},
        limit={"equals": "conv", "grid": (4, 6), "set": {"coordinates.weight": "zeros"}},
        differs="the radius is of the scaled coordinates, there of places counted from the middle",
        cannot={"mask": "it is a layer of maps, and a map has no places to leave out"})

    def __init__(self, dim: int, *, kernel_size: int = 3, radius: bool = False, bias: bool = True):
        super().__init__(dim)
        check_odd("kernel_size", kernel_size)
        self.radius = radius
        self.conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, bias=bias)
        self.coordinates = nn.Conv2d(2 + radius, dim, kernel_size, padding=kernel_size // 2, bias=False)

    def mix(self, x: Tensor) -> Tensor:
        i, j = torch.meshgrid(*(_ramp(side, x) for side in x.shape[2:]), indexing="ij")
        places = [i, j, (i.square() + j.square()).sqrt()] if self.radius else [i, j]
        return self.conv(x) + self.coordinates(torch.stack(places)[None].to(x.dtype))


def _ramp(side: int, like: Tensor) -> Tensor:
    """Evenly from -1 to 1; 0 for a single place."""
    exact = torch.promote_types(like.dtype, torch.float32)  # half precision cannot count the places of a long side
    return (2 * torch.arange(side, dtype=exact, device=like.device) - (side - 1)) / max(side - 1, 1)
