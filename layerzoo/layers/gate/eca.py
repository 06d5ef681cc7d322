"""Efficient channel attention: the gate of a channel is a convolution over the means of the channels beside it."""

import math

from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.layers.base import Layer, check_odd


class ECA(Layer):
    """Efficient channel attention as a gate.

    **Paper**: ECA-Net, arXiv 1910.03151.

    y = g * x, g_c = sigmoid(sum_u w_u mean(x)_{c + u}), the mean over all positions, u from -(k-1)/2 to (k-1)/2 and zeros beyond the
    first and the last channel; k grows with the channels, k = odd((log2 C + 1) / 2).

    **Shape**: (B, C, H, W) -> the same.

    **Cost**: time N C for the mean and the product, and C k; memory N C; k parameters.

    **Args**:
        dim: channels C.
        kernel_size: k, in channels, odd; None = by the rule above, where odd(t) is t rounded down if that is odd, else one more, and 3
            at least.

    **Raises**: ValueError for a kernel_size that is not odd.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> layer = lz.create_layer("eca", dim=256)
        >>> layer.conv.kernel_size, layer(torch.randn(2, 256, 7, 5)).shape
        ((5,), torch.Size([2, 256, 7, 5]))

    **Differs from the paper**: at least three channels are seen, where its rule would leave fewer than 8 channels alone.
    """

    card = Card(
        title="Efficient channel attention", paper="1910.03151", year=2019, cost=(1, 1), mask=False, needs_grid=True,
        symmetry="permutation", sizes={"tiny": {"dim": 8}, "base": {"dim": 64}, "odd": {"dim": 5, "kernel_size": 7}},
        differs="at least three channels are seen, where its rule would leave fewer than 8 channels alone",
        cannot={"mask": "it is a layer of maps, and a map has no places to leave out"})

    def __init__(self, dim: int, *, kernel_size: int | None = None):
        super().__init__(dim)
        if kernel_size is None:
            size = int((math.log2(dim) + 1) / 2)
            kernel_size = max(3, size + 1 - size % 2)
        check_odd("kernel_size", kernel_size)
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def mix(self, x: Tensor) -> Tensor:
        gate = self.conv(x.mean((2, 3)).unsqueeze(1)).sigmoid()
        return x * gate.transpose(1, 2).unsqueeze(3)
