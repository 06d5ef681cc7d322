"""Octave convolution: some of the channels are kept at half the resolution, and both kinds exchange what they see."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import Layer, check_odd


class OctaveConv(Layer):
    """Octave convolution.

    **Paper**: Drop an Octave, arXiv 1904.05049.

    y_h = W_hh * x_h + up(W_lh * pool(x_l)), y_l = up(W_ll * pool(x_l) + W_hl * pool(x_h)), x_l the last alpha C channels, rounded down.

    pool takes the mean of 2x2 places, at an odd side of those that there are; up repeats each value for these places. Since
    pool(up(z)) = z, layers in a row do what the paper's do that pass the small map on.

    **Shape**: (B, C, H, W) -> the same.

    **Cost**: time N C^2 k^2 (1 - 3/4 alpha (2 - alpha)); memory N C.

    **Args**:
        dim: channels C.
        alpha: share of the channels at half resolution, from 0 to below 1; 0.25, the best in the paper's ResNets or within 0.3 %.
        kernel_size: k, in positions of either resolution, odd; 3, as in the ResNets of the paper.
        bias: one of y_h and one of y_l; on, since no batch norm follows.

    **Raises**: ValueError for an alpha outside [0, 1), and for a kernel_size that is not odd.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("octave_conv", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: y_l leaves at full resolution, so that any layer may follow; no stride, and the share is the same before
    and after.
    """

    card = Card(
        title="Octave convolution", paper="1904.05049", year=2019, cost=(1, 1), mask=False, needs_grid=True,
        sizes={"tiny": {"dim": 8}, "base": {"dim": 64}, "odd": {"dim": 5, "alpha": 0.5, "kernel_size": 5, "bias": False}},
        limit={"equals": "conv", "options": {"alpha": 0.0}, "grid": (4, 6)},
        differs="the channels of half resolution leave at full resolution; no stride, and their share is the same before and after",
        cannot={"mask": "it is a layer of maps, and a map has no places to leave out"})

    def __init__(self, dim: int, *, alpha: float = 0.25, kernel_size: int = 3, bias: bool = True):
        super().__init__(dim)
        if not 0 <= alpha < 1:
            raise bad_value("alpha", got=alpha, expected="a share of the channels from 0 to below 1", do="The paper's are 0.125 to 0.75.")
        check_odd("kernel_size", kernel_size)
        low, rim = int(alpha * dim), kernel_size // 2
        self.high = dim - low
        self.conv = nn.Conv2d(self.high, self.high, kernel_size, padding=rim, bias=bias)
        self.to_low = self.to_high = None
        if low:
            self.to_low = nn.Conv2d(dim, low, kernel_size, padding=rim, bias=bias)  # W_hl and W_ll
            self.to_high = nn.Conv2d(low, self.high, kernel_size, padding=rim, bias=False)

    def mix(self, x: Tensor) -> Tensor:
        y = self.conv(x[:, : self.high])
        if self.to_low is None:
            return y
        pooled = F.avg_pool2d(x, 2, ceil_mode=True)  # in ceil mode a mean counts only what is in the map
        z = torch.cat([self.to_high(pooled[:, self.high:]), self.to_low(pooled)], 1)
        z = F.interpolate(z, scale_factor=2.0)[..., : x.shape[2], : x.shape[3]]
        return torch.cat([y + z[:, : self.high], z[:, self.high:]], 1)
