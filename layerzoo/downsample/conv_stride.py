"""Strided convolution: 3x3 kernels at every other place, then a norm."""

from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.downsample.base import Downsample
from layerzoo.layers.base import check_choice


class ConvStride(Downsample):
    """3x3 convolution of stride 2.

    **Paper**: MetaFormer Baselines for Vision, arXiv 2210.13452.

    y[i, j] = norm(b + sum_{u, v} W[u, v] x[2i + u, 2j + v]), with u, v from -1 to 1 and x = 0 outside the map.

    **Shape**: (B, C, H, W) -> (B, C_out, ceil(H / 2), ceil(W / 2)).

    **Cost**: time N C C_out; memory N C; 9 C C_out parameters.

    **Args**:
        dim: channels C.
        dim_out: channels C_out.
        norm: "layer" (over channels), "batch" or "none"; layer, since it is the same in training and use, and for one sample.

    **Raises**: ValueError for a dim or dim_out below 1, an unknown norm, and for an input that is not (B, C, H, W).

    **Example**:
        >>> import torch
        >>> ConvStride(64, 128)(torch.randn(2, 64, 7, 6)).shape
        torch.Size([2, 128, 4, 3])

    **Differs from the paper**: the norm follows the convolution; there it goes before.
    """

    card = Card(
        title="Strided convolution", paper="2210.13452", year=2022, cost=(1, 1), mask=False, needs_grid=True,
        sizes={"tiny": {"dim": 8, "dim_out": 16}, "base": {"dim": 64, "dim_out": 128, "norm": "batch"},
               "odd": {"dim": 5, "dim_out": 7, "norm": "none"}},
        differs="the norm follows the convolution; there it goes before",
        cannot={"mask": "it is a unit of maps, and a map has no places to leave out"})

    def __init__(self, dim: int, dim_out: int, *, norm: str = "layer"):
        super().__init__(dim, dim_out)
        check_choice("norm", norm, ("layer", "batch", "none"))
        self.conv = nn.Conv2d(dim, dim_out, 3, stride=2, padding=1, bias=norm != "batch")
        self.norm = {"layer": nn.LayerNorm, "batch": nn.BatchNorm2d}[norm](dim_out) if norm != "none" else nn.Identity()

    def reduce(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y.movedim(1, -1)).movedim(-1, 1) if isinstance(self.norm, nn.LayerNorm) else self.norm(y)
