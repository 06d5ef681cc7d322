"""Partial convolution: some of the channels are convolved, the others pass as they are."""

import torch
from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import Layer, check_odd


class PartialConv(Layer):
    """Dense convolution of the first channels, since those of a map are much alike.

    **Paper**: FasterNet, arXiv 2303.03667.

    y = [W * x_1, x_2], with x_1 the first C_p channels of x, x_2 the rest, C_p = C / p rounded down but at least 1, and x = 0 outside
    the map. It leaves all mixing of channels but those of x_1 to the ffn, as the paper does.

    **Shape**: (B, C, H, W) -> the same.

    **Cost**: time N (C / p)^2 k^2; memory N C.

    **Args**:
        dim: channels C.
        num_parts: p, parts of the channels, of which the first is convolved; 4, the paper's, a sixteenth of the work of a convolution.
        kernel_size: k, in positions, odd; 3, the paper's.
        bias: of the convolution; off, the paper's, as the ffn that follows has one.

    **Raises**: ValueError for num_parts that is not from 1 to dim, and for a kernel_size that is not odd.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("partial_conv", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: the layer alone, without the two 1x1 convolutions of a FasterNet block, which are the ffn.
    """

    card = Card(
        title="Partial convolution", paper="2303.03667", year=2023, cost=(1, 1), mask=False, needs_grid=True, symmetry="translation",
        sizes={"tiny": {"dim": 8}, "base": {"dim": 64}, "odd": {"dim": 5, "num_parts": 2, "kernel_size": 5, "bias": True}},
        limit={"equals": "conv", "options": {"num_parts": 1}, "equals_options": {"bias": False}, "grid": (4, 6)},
        differs="the layer alone, without the two 1x1 convolutions of a FasterNet block",
        cannot={"mask": "it is a layer of maps, and a map has no places to leave out"})

    def __init__(self, dim: int, *, num_parts: int = 4, kernel_size: int = 3, bias: bool = False):
        super().__init__(dim)
        if not 1 <= num_parts <= dim:
            expected = f"1 to dim={dim} parts of the channels"
            raise bad_value("num_parts", got=num_parts, expected=expected, do="The paper has 4; 1 convolves all.")
        check_odd("kernel_size", kernel_size)
        self.num_parts, self.convolved = num_parts, dim // num_parts
        self.conv = nn.Conv2d(self.convolved, self.convolved, kernel_size, padding=kernel_size // 2, bias=bias)

    def mix(self, x: Tensor) -> Tensor:
        convolved, kept = x.split((self.convolved, self.dim - self.convolved), 1)  # whose gradients are joined; those of slices are zeros added up
        return torch.cat([self.conv(convolved), kept], 1)
