"""Local patch interaction: two small depthwise convolutions with a batch norm between them, by which XCiT's neighbours meet."""

from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.layers.base import Layer, check_odd


class LocalPatchInteraction(Layer):
    """The local half of an XCiT block.

    **Paper**: XCiT, arXiv 2106.09681.

    y = W_2 * norm(gelu(W_1 * x)), with W_1 and W_2 depthwise, k x k, with a bias, and zeros outside the map; norm is a batch norm.

    **Shape**: (B, C, H, W) -> the same.

    **Cost**: time 2 N C k^2; memory N C.

    **Args**:
        dim: channels C.
        kernel_size: k, in positions, odd; 3, the paper's.

    **Raises**: ValueError for a kernel_size that is not odd. In training a batch norm refuses a single sample of a single place.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("local_patch_interaction", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: nothing.
    """

    card = Card(
        title="Local patch interaction (XCiT)", paper="2106.09681", year=2021, cost=(1, 1), mask=False, needs_grid=True, symmetry="translation",
        sizes={"tiny": {"dim": 8}, "base": {"dim": 64}, "odd": {"dim": 5, "kernel_size": 5}},
        cannot={"mask": "it is a layer of maps, and a map has no places to leave out"})

    def __init__(self, dim: int, *, kernel_size: int = 3):
        super().__init__(dim)
        check_odd("kernel_size", kernel_size)
        self.conv1 = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.norm = nn.BatchNorm2d(dim)
        self.conv2 = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)

    def mix(self, x: Tensor) -> Tensor:
        return self.conv2(self.norm(F.gelu(self.conv1(x))))
