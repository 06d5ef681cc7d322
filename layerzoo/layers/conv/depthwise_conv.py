"""Depthwise convolution: every channel is filtered by a kernel of its own."""

from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.layers.base import Layer, check_odd


class DepthwiseConv(Layer):
    """Depthwise convolution at the same resolution.

    **Paper**: ConvNeXt, arXiv 2201.03545.

    y_c[i, j] = b_c + sum_{u, v} W_c[u, v] x_c[i + u, j + v], with u, v from -(k-1)/2 to (k-1)/2 and x = 0 outside the map.

    **Shape**: (B, C, H, W) -> the same.

    **Cost**: time N C k^2; memory N C.

    **Args**:
        dim: channels C.
        kernel_size: k, in positions, odd; 7, as in ConvNeXt.
        bias: adds b; on, as in ConvNeXt.

    **Raises**: ValueError for a kernel_size that is not odd.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("depthwise_conv", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: the layer alone, without the norm and the MLP of a ConvNeXt block, which are the block's.
    """

    card = Card(
        title="Depthwise convolution", paper="2201.03545", year=2022, cost=(1, 1), mask=False, needs_grid=True, symmetry="translation",
        sizes={"tiny": {"dim": 8, "kernel_size": 3}, "base": {"dim": 64}, "odd": {"dim": 5, "kernel_size": 5, "bias": False}},
        limit={"equals": "identity", "options": {"kernel_size": 1, "bias": False}, "grid": (4, 6), "set": {"conv.weight": "ones"}},
        differs="the layer alone, without the norm and the MLP of a ConvNeXt block",
        cannot={"mask": "it is a layer of maps, and a map has no places to leave out"})

    def __init__(self, dim: int, *, kernel_size: int = 7, bias: bool = True):
        super().__init__(dim)
        check_odd("kernel_size", kernel_size)
        self.conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, bias=bias)

    def mix(self, x: Tensor) -> Tensor:
        return self.conv(x)
