"""Shift: every group of channels is moved by an offset of its own, then all channels are mixed at each place."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.layers.base import Layer, check_odd


class Shift(Layer):
    """Spatial shift without parameters, and the 1x1 convolution without which it mixes nothing.

    **Paper**: Shift, arXiv 1711.08141.

    y[i, j] = b + W s[i, j], s_c[i, j] = x_c[i + u_c, j + v_c], with x = 0 outside the map: each offset (u, v) from -(k-1)/2 to (k-1)/2
    is that of one group of C / k^2 channels. It is a convolution of k x k whose depthwise part has a single 1 in each kernel.

    Groups are in order of |(u, v)|, then u, then v. If k^2 does not divide C, the first have one channel more; if C < k^2, the first C
    have one.

    **Shape**: (B, C, H, W) -> the same.

    **Cost**: time N C^2, for W alone; memory N C.

    **Args**:
        dim: channels C.
        kernel_size: k, side of the square of offsets, in positions, odd; 3, the paper's most common.
        bias: adds b; on, since no batch norm follows.

    **Raises**: ValueError for a kernel_size that is not odd.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("shift", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: channels that are over go to the shortest offsets, there all to the centre, where fewer channels than
    offsets would not move at all; the 1x1 convolution before the shift is that of the unit before, and no batch norm and ReLU.
    """

    card = Card(
        title="Shift", paper="1711.08141", year=2017, cost=(1, 1), mask=False, needs_grid=True, symmetry="translation",
        sizes={"tiny": {"dim": 11}, "base": {"dim": 64}, "odd": {"dim": 27, "kernel_size": 5, "bias": False}},
        limit={"equals": "conv", "options": {"kernel_size": 1}, "equals_options": {"kernel_size": 1}, "grid": (4, 6)},
        differs="channels that are over go to the shortest offsets, there all to the centre; one 1x1 convolution, after the shift",
        cannot={"mask": "it is a layer of maps, and a map has no places to leave out"})

    def __init__(self, dim: int, *, kernel_size: int = 3, bias: bool = True):
        super().__init__(dim)
        check_odd("kernel_size", kernel_size)
        rim = kernel_size // 2
        offsets = [(u, v) for u in range(-rim, rim + 1) for v in range(-rim, rim + 1)]
        self.offsets = sorted(offsets, key=lambda o: (o[0] ** 2 + o[1] ** 2, o))[:dim]
        each, over = divmod(dim, len(self.offsets))
        self.split = [each + (g < over) for g in range(len(self.offsets))]
        self.conv = nn.Conv2d(dim, dim, 1, bias=bias)

    def mix(self, x: Tensor) -> Tensor:
        groups = x.split(self.split, 1)
        return self.conv(torch.cat([_moved(group, *offset) for group, offset in zip(groups, self.offsets)], 1))


def _moved(x: Tensor, u: int, v: int) -> Tensor:
    """x[i + u, j + v] at each place (i, j), 0 from outside the map: what leaves at one side is cropped, the other is padded."""
    height, width = x.shape[2:]
    u, v = max(-height, min(u, height)), max(-width, min(v, width))  # further than a side is all outside
    return F.pad(x, (-v, v, -u, u))
