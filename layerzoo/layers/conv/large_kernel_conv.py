"""Large-kernel convolution: a large depthwise kernel trained with a small one beside it, which fold into one."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import Layer, check_odd


class LargeKernelConv(Layer):
    """Depthwise convolution with a large, re-parametrised kernel.

    **Paper**: RepLKNet, arXiv 2203.06717.

    y_c = b_c + W_c * x_c + V_c * x_c, with W of k x k, V of s x s and x = 0 outside the map.

    `fuse()` adds V to the middle of W: one depthwise convolution, the same function.

    **Shape**: (B, C, H, W) -> the same.

    **Cost**: time N C (k^2 + s^2), N C k^2 when fused; memory N C.

    **Args**:
        dim: channels C.
        kernel_size: k, in positions, odd; 13, the paper's for its smallest maps: its 31 to 27 are for maps of 56 to 14 positions a side.
        small_kernel_size: s, odd and at most k; 5, the paper's; 0 = no small kernel, the form after `fuse()`.
        bias: adds b; on, where the paper's batch norm adds it.

    **Raises**: ValueError for kernel sizes that are not odd, and for a small kernel larger than the large one.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> layer, x = lz.create_layer("large_kernel_conv", dim=64), torch.randn(2, 64, 7, 5)
        >>> y = layer(x)
        >>> torch.allclose(layer.fuse()(x), y, atol=1e-5)
        True

    **Differs from the paper**: no batch norm after either kernel (the block norms, and training works on one sample of one place),
    so `fuse()` holds while training too; the 1x1 convolutions around it are the block's.
    """

    card = Card(
        title="Large-kernel convolution", paper="2203.06717", year=2022, cost=(1, 1), mask=False, needs_grid=True, symmetry="translation",
        sizes={"tiny": {"dim": 8, "kernel_size": 7, "small_kernel_size": 3}, "base": {"dim": 64},
               "odd": {"dim": 5, "kernel_size": 9, "small_kernel_size": 1, "bias": False}},
        limit={"equals": "depthwise_conv", "options": {"kernel_size": 9}, "equals_options": {"kernel_size": 9}, "grid": (4, 6),
               "set": {"small.weight": "zeros"}},
        differs="no batch norm after either kernel; the 1x1 convolutions around it are the block's",
        cannot={"mask": "it is a layer of maps, and a map has no places to leave out"})

    def __init__(self, dim: int, *, kernel_size: int = 13, small_kernel_size: int = 5, bias: bool = True):
        super().__init__(dim)
        check_odd("kernel_size", kernel_size)
        if small_kernel_size:
            check_odd("small_kernel_size", small_kernel_size)
        if small_kernel_size > kernel_size:
            raise bad_value(
                "small_kernel_size", got=small_kernel_size, expected=f"at most kernel_size={kernel_size}", do="Pass 0 for no small kernel.")
        self.conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, bias=bias)
        self.small = None
        if small_kernel_size:
            self.small = nn.Conv2d(dim, dim, small_kernel_size, padding=small_kernel_size // 2, groups=dim, bias=False)

    def mix(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y if self.small is None else y + self.small(x)

    @torch.no_grad()
    def fuse(self) -> "LargeKernelConv":
        """Fold the small kernel into the large one, in place; the function stays the same. Returns the layer."""
        if self.small is not None:
            rim = (self.conv.kernel_size[0] - self.small.kernel_size[0]) // 2
            self.conv.weight += F.pad(self.small.weight, (rim, rim, rim, rim))
            self.small = None
        return self
