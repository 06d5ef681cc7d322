"""Convolution: one small kernel over all channels, the same at every place."""

from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.layers.base import Layer, check_odd


class Conv(Layer):
    """Dense convolution at the same resolution.

    **Paper**: LeCun et al., Backpropagation Applied to Handwritten Zip Code Recognition, 1989 (not on arXiv).

    y[i, j] = b + sum_{u, v} W[u, v] x[i + u, j + v], with u, v from -(k-1)/2 to (k-1)/2, W[u, v] of C x C and x = 0 outside the map.

    **Shape**: (B, C, H, W) -> the same.

    **Cost**: time N C^2 k^2; memory N C.

    **Args**:
        dim: channels C.
        kernel_size: k, in positions, odd; 3, as in VGG and ResNet.
        bias: adds b; on, since no batch norm follows.

    **Raises**: ValueError for a kernel_size that is not odd.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("conv", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: stride 1 and as many channels out as in; a bias per channel, not per place.
    """

    card = Card(
        title="Convolution", paper="", year=1989, cost=(1, 1), mask=False, needs_grid=True, symmetry="translation",
        sizes={"tiny": {"dim": 8}, "base": {"dim": 64}, "odd": {"dim": 5, "kernel_size": 5, "bias": False}},
        differs="stride 1 and as many channels out as in; a bias per channel, not per place",
        cannot={"mask": "it is a layer of maps, and a map has no places to leave out"})

    def __init__(self, dim: int, *, kernel_size: int = 3, bias: bool = True):
        super().__init__(dim)
        check_odd("kernel_size", kernel_size)
        self.conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, bias=bias)

    def mix(self, x: Tensor) -> Tensor:
        return self.conv(x)
