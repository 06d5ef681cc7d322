"""CBAM: a gate for each channel from its mean and peak over the map, then a gate for each place from those over the channels."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.layers.base import Layer, check_odd
from layerzoo.layers.gate.se import squeezed


class CBAM(Layer):
    """Convolutional block attention module.

    **Paper**: CBAM, arXiv 1807.06521.

    z = sigmoid(f(mean(x)) + f(max(x))) * x over all positions, f(s) = W_2 relu(W_1 s), W_1 from C channels to R and W_2 back; then
    y[i, j] = sigmoid(b + sum_{u, v} w[u, v] . (mean(z), max(z))[i + u, j + v]) z[i, j] over all channels, w of k x k.

    **Shape**: (B, C, H, W) -> the same.

    **Cost**: time N C + N k^2; memory N C; 2 C R parameters.

    **Args**:
        dim: channels C.
        reduction: C / R; 16, the paper's. R is rounded to a multiple of 8, 8 at least.
        kernel_size: k, in positions, odd; 7, the paper's.

    **Raises**: ValueError for a reduction below 1 and a kernel_size that is not odd.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("cbam", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: no batch norm after the k x k convolution, which has a bias instead: in eval that is the same function,
    and training works on one sample of one place. R is a multiple of 8.
    """

    card = Card(
        title="Convolutional block attention module", paper="1807.06521", year=2018, cost=(1, 1), mask=False, needs_grid=True,
        symmetry="translation",
        sizes={"tiny": {"dim": 8, "kernel_size": 3}, "base": {"dim": 64}, "odd": {"dim": 15, "reduction": 1, "kernel_size": 5}},
        differs="no batch norm after the convolution, which has a bias instead; the channels between are a multiple of 8",
        cannot={"mask": "it is a layer of maps, and a map has no places to leave out"})

    def __init__(self, dim: int, *, reduction: int = 16, kernel_size: int = 7):
        super().__init__(dim)
        check_odd("kernel_size", kernel_size)
        hidden = squeezed(dim, reduction)
        self.fc1 = nn.Conv2d(dim, hidden, 1, bias=False)
        self.fc2 = nn.Conv2d(hidden, dim, 1, bias=False)
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2)

    def mix(self, x: Tensor) -> Tensor:
        mean, peak = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        z = x * self.fc2(F.relu(self.fc1(mean)) + F.relu(self.fc1(peak))).sigmoid()
        places = torch.cat([z.mean(1, keepdim=True), z.amax(1, keepdim=True)], 1)
        return z * self.conv(places).sigmoid()
