"""Strided convolution: small kernels at every other place, then a norm."""

from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.downsample.base import Downsample
from layerzoo.layers.base import check_choice
from layerzoo.ops.norms import create_norm


class ConvStride(Downsample):
    """Convolution of 3x3 or 2x2 places and stride 2.

    **Paper**: MetaFormer Baselines for Vision, arXiv 2210.13452.

    y[i, j] = norm(b + sum_{u, v} W[u, v] z[2i + u, 2j + v]), z = pre_norm(x), with u, v from -1 to 1, or 0 and 1, and z = 0 outside the map.

    **Shape**: (B, C, H, W) -> (B, C_out, ceil(H / 2), ceil(W / 2)).

    **Cost**: time N C C_out; memory N C; k^2 C C_out parameters.

    **Args**:
        dim: channels C.
        dim_out: channels C_out.
        kernel_size: k, 3 or 2; 3, the paper's; 2 cuts the map into patches, as in ConvNeXt.
        norm: "layer" (over channels), "batch", "group" or "none", or {"name": ..., "eps": ...}; layer, since it is the same in training
            and use, and for one sample. With batch the convolution has no bias.
        pre_norm: likewise, before the convolution; none.

    **Raises**: ValueError for a dim or dim_out below 1, another kernel_size, an unknown norm, and for an input that is not (B, C, H, W).

    **Example**:
        >>> import torch
        >>> ConvStride(64, 128)(torch.randn(2, 64, 7, 6)).shape
        torch.Size([2, 128, 4, 3])

    **Differs from the paper**: the norm follows the convolution; there it goes before, which is pre_norm="layer", norm="none".
    """

    card = Card(
        title="Strided convolution", paper="2210.13452", year=2022, cost=(1, 1), mask=False, needs_grid=True,
        sizes={"tiny": {"dim": 8, "dim_out": 16}, "base": {"dim": 64, "dim_out": 128, "norm": "batch"},
               "odd": {"dim": 5, "dim_out": 7, "kernel_size": 2, "norm": "none", "pre_norm": "layer"}},
        differs="the norm follows the convolution; there it goes before, as pre_norm",
        cannot={"mask": "it is a unit of maps, and a map has no places to leave out"})

    def __init__(
        self, dim: int, dim_out: int, *, kernel_size: int = 3, norm: str | dict = "layer", pre_norm: str | dict = "none",
    ):
        super().__init__(dim, dim_out)
        check_choice("kernel_size", kernel_size, (3, 2))
        self.pre_norm = create_norm(pre_norm, dim)
        self.norm = create_norm(norm, dim_out)
        bias = not isinstance(self.norm, nn.BatchNorm2d)
        self.conv = nn.Conv2d(dim, dim_out, kernel_size, stride=2, padding=kernel_size // 3, bias=bias)

    def reduce(self, x: Tensor) -> Tensor:
        x = self.pre_norm(x)
        if self.conv.kernel_size == (2, 2):
            x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        return self.norm(self.conv(x))
