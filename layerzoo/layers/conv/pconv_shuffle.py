"""Partial convolution with a channel shuffle, so that the next one convolves other channels."""

import torch
from torch import Tensor

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.conv.partial_conv import PartialConv


class PConvShuffle(PartialConv):
    """Partial convolution, then the channel shuffle. For layers in a row: a residual around each undoes what the shuffle is for.

    **Paper**: ShuffleNet (the shuffle), arXiv 1707.01083; FasterNet (the convolution), arXiv 2303.03667.

    y[j p + i] = z[i C / p + j] for i < p and j < C / p, with z = [W * x_1, x_2], x_1 the first C / p channels and x = 0 outside the map.

    Every part of y holds channels of all parts of z, so l layers in a row convolve 1 - (1 - 1 / p)^l of the channels instead of 1 / p.
    That holds while p^l <= C; where C is a power of p the shuffle soon repeats itself, and of C = 64 in 4 parts 27 channels are never
    convolved: the ffn between the layers is still needed.

    **Shape**: (B, C, H, W) -> the same.

    **Cost**: time N (C / p)^2 k^2; memory N C: the shuffle is part of the copy that joins the channels.

    **Args**:
        dim: channels C.
        num_parts: p, a divisor of dim; None = 4, FasterNet's, or the largest divisor below it.
        kernel_size: k, in positions, odd; 3, FasterNet's.
        bias: of the convolution; off, FasterNet's.

    **Raises**: ValueError for num_parts that does not divide dim, and for a kernel_size that is not odd.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("pconv_shuffle", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: FasterNet has no shuffle; ShuffleNet shuffles between grouped 1x1 convolutions.
    """

    card = Card(
        title="Partial convolution with channel shuffle", paper="1707.01083", year=2017, cost=(1, 1), mask=False, needs_grid=True,
        symmetry="translation",
        sizes={"tiny": {"dim": 8}, "base": {"dim": 64}, "odd": {"dim": 6, "num_parts": 3, "kernel_size": 5, "bias": True}},
        limit={"equals": "conv", "options": {"num_parts": 1}, "equals_options": {"bias": False}, "grid": (4, 6)},
        differs="FasterNet has no shuffle; ShuffleNet shuffles between grouped 1x1 convolutions",
        cannot={"mask": "it is a layer of maps, and a map has no places to leave out"})

    def __init__(self, dim: int, *, num_parts: int | None = None, kernel_size: int = 3, bias: bool = False):
        num_parts = next(p for p in (4, 3, 2, 1) if dim % p == 0) if num_parts is None else num_parts
        if num_parts < 1 or dim % num_parts:
            divisors = ", ".join(str(p) for p in range(1, dim + 1) if dim % p == 0)
            expected = f"a divisor of dim={dim}, for parts of one size"
            raise bad_value("num_parts", got=num_parts, expected=expected, do=f"Choose one of {divisors}.")
        super().__init__(dim, num_parts=num_parts, kernel_size=kernel_size, bias=bias)

    def mix(self, x: Tensor) -> Tensor:
        first, *rest = x.chunk(self.num_parts, 1)
        return _shuffle([self.conv(first), *rest], like=x)


def _shuffle(parts: list[Tensor], like: Tensor) -> Tensor:
    """The first channels of all parts, then the second ones, ...: one copy, in the memory format of the map `like`."""
    if like.is_contiguous():
        return torch.stack(parts, 2).flatten(1, 2)
    return torch.stack([part.permute(0, 2, 3, 1) for part in parts], -1).flatten(3).permute(0, 3, 1, 2)
