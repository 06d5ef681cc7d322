"""BlurPool: what is computed at every place is blurred before every other place is left out."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.downsample.base import Downsample
from layerzoo.errors import bad_value
from layerzoo.layers.base import check_choice


class BlurPool(Downsample):
    """Anti-aliased stride.

    **Paper**: Making Convolutional Networks Shift-Invariant Again, arXiv 1904.11486.

    y[i, j] is the mean of z[2i + u, 2j + v] under weights f[u] f[v], f the binomial coefficients of k - 1, u and v from -(k-1)/2 to k/2,
    rounded towards 0, at a border over the places that there are, and z one of

    - relu(W * x + b) with W of 3x3, for a strided convolution,
    - the largest x of 3x3 places, for max pooling,
    - x, for mean pooling.

    The latter two are followed by W of 1x1 where C_out differs from C. The finest pattern, +1 and -1 in turn, is blurred to nothing,
    where a stride alone makes one flat value of it, whose sign depends on the place of the pattern.

    **Shape**: (B, C, H, W) -> (B, C_out, ceil(H / 2), ceil(W / 2)).

    **Cost**: time 9 N C C_out, four times that of a strided convolution, or N C C_out / 4, and N C k^2 / 4; memory N (C + C_out).

    **Args**:
        dim: channels C.
        dim_out: channels C_out.
        before: "conv", "max" or "none", what is computed at every place; conv, to stand where a strided convolution stands.
        kernel_size: k, side of f in positions; 3, the paper's Tri-3, the least blur that is symmetric; 1 = no blur, so the stride alone.

    **Raises**: ValueError for a dim, dim_out or kernel_size below 1, an unknown before, and for an input that is not (B, C, H, W).

    **Example**:
        >>> import torch
        >>> BlurPool(64, 128)(torch.randn(2, 64, 7, 6)).shape
        torch.Size([2, 128, 4, 3])

    **Differs from the paper**: at a border the mean is of the places that there are, where the paper reflects them, which a side of one
    place cannot be; a projection where channels change without a convolution.
    """

    card = Card(
        title="BlurPool", paper="1904.11486", year=2019, cost=(1, 1), mask=False, needs_grid=True,
        sizes={"tiny": {"dim": 8, "dim_out": 16}, "base": {"dim": 64, "dim_out": 128, "before": "max", "kernel_size": 5},
               "odd": {"dim": 5, "dim_out": 5, "before": "none", "kernel_size": 4}},
        differs="at a border the mean is of the places that there are; a projection where channels change without a convolution",
        cannot={"mask": "it is a unit of maps, and a map has no places to leave out"})

    def __init__(self, dim: int, dim_out: int, *, before: str = "conv", kernel_size: int = 3):
        super().__init__(dim, dim_out)
        check_choice("before", before, ("conv", "max", "none"))
        if kernel_size < 1:
            raise bad_value(
                "kernel_size", got=kernel_size, expected="a whole number of positions >= 1", do="The paper has 2, 3 and 5; 1 is no blur.")
        self.before, self.kernel_size = before, kernel_size
        self.conv = nn.Conv2d(dim, dim_out, 3, padding=1) if before == "conv" else None
        taps = torch.tensor([math.comb(kernel_size - 1, u) / 2 ** (kernel_size - 1) for u in range(kernel_size)])
        self.register_buffer("blur", torch.outer(taps, taps)[None, None])
        self.proj = nn.Conv2d(dim, dim_out, 1) if before != "conv" and dim != dim_out else nn.Identity()

    def reduce(self, x: Tensor) -> Tensor:
        z = x
        if self.conv is not None:
            z = F.relu(self.conv(x))
        elif self.before == "max":
            z = F.max_pool2d(x, 3, 1, 1)
        return self.proj(self._halved(z) / self._halved(torch.ones_like(z[:1, :1])))

    def _halved(self, z: Tensor) -> Tensor:
        """Weighted sums around every other place, of zeros beyond the border."""
        if self.kernel_size % 2 == 0:
            z = F.pad(z, (0, 1, 0, 1))
        return F.conv2d(z, self.blur.expand(z.shape[1], -1, -1, -1), None, 2, (self.kernel_size - 1) // 2, groups=z.shape[1])
