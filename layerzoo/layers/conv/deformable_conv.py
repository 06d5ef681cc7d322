"""Deformable convolution, version 2: a convolution that reads each place of its kernel where the input says, as much as it says."""

from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.layers.base import Layer, check_odd
from layerzoo.ops.formats import match_format
from layerzoo.ops.groups import check_groups
from layerzoo.ops.sampling import kernel_points, sample


class DeformableConv(Layer):
    """Modulated deformable convolution.

    **Paper**: Deformable ConvNets v2, arXiv 1811.11168.

    y[p] = b + sum_k W_k x(p + p_k + d_k[p]) m_k[p], over the K = k x k places p_k of the kernel: x( ) is bilinear, and zero outside the
    map; the offsets d = D * x and the modulation m = sigmoid(M * x) are convolutions of k x k that start at zero.

    **Shape**: (B, C, H, W) -> the same.

    **Cost**: time N C^2 k^2; memory N C k^2.

    **Args**:
        dim: channels C.
        kernel_size: k, in positions, odd; 3, the paper's.
        num_groups: groups of channels with offsets and modulation of their own; 1, the paper's.
        bias: adds b; on, since no batch norm follows.

    **Raises**: ValueError for a kernel_size that is not odd, and num_groups that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("deformable_conv", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: stride 1 and as many channels out as in; the offsets learn at the rate of the rest, not at a tenth.
    """

    card = Card(
        title="Deformable convolution v2", paper="1811.11168", year=2018, cost=(1, 1), mask=False, needs_grid=True, symmetry="translation",
        sizes={"tiny": {"dim": 8}, "base": {"dim": 64}, "odd": {"dim": 15, "kernel_size": 5, "num_groups": 3, "bias": False}},
        limit={"equals": "conv", "grid": (4, 6), "set": {"offset.weight": "zeros", "offset.bias": "zeros", "modulation.weight": "zeros",
                                                         "modulation.bias": 40}},
        differs="stride 1 and as many channels out as in; the offsets learn at the rate of the rest, not at a tenth",
        cannot={"mask": "it is a layer of maps, and a map has no places to leave out"})

    def __init__(self, dim: int, *, kernel_size: int = 3, num_groups: int = 1, bias: bool = True):
        super().__init__(dim)
        check_odd("kernel_size", kernel_size)
        self.num_groups = check_groups(dim, num_groups)
        places = num_groups * kernel_size**2
        self.offset = nn.Conv2d(dim, 2 * places, kernel_size, padding=kernel_size // 2)
        self.modulation = nn.Conv2d(dim, places, kernel_size, padding=kernel_size // 2)
        self.conv = nn.Conv2d(dim, dim, kernel_size, bias=bias)
        for p in (*self.offset.parameters(), *self.modulation.parameters()):
            nn.init.zeros_(p)

    def mix(self, x: Tensor) -> Tensor:
        offset = self.offset(x).unflatten(1, (self.num_groups, -1, 2)).movedim(3, -1)  # (B, G, K, H, W, 2)
        modulation = self.modulation(x).sigmoid().unflatten(1, (self.num_groups, 1, -1))
        groups = x.unflatten(1, (self.num_groups, -1)).flatten(0, 1)
        read = sample(groups, kernel_points(offset).flatten(0, 1)).unflatten(0, (-1, self.num_groups))  # (B, G, C / G, K, H, W)
        kernel = self.conv.weight.flatten(1)[..., None, None]
        return match_format(F.conv2d((read * modulation).flatten(1, 3), kernel, self.conv.bias), x)
