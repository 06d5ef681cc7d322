"""Focal modulation: every place weighs what lies around it at growing distances, and that multiplies its query."""

from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import Layer, check_odd


class FocalModulation(Layer):
    """Focal modulation.

    **Paper**: Focal Modulation Networks, arXiv 2203.11926.

    y = W_o (q * (W_h m + b_h)) + b_o, m = sum_{l = 1..L} g_l z_l + g_{L+1} gelu(mean(z_L)), z_l = gelu(D_l z_{l-1}), with q and z_0 of C
    channels and the L + 1 gates g, numbers for each place, all linear in x at that place; D_l a depthwise convolution of k_l x k_l,
    k_l = k + 2 (l - 1), without a bias and with zeros outside the map; the mean is over all positions.

    **Shape**: (B, C, H, W) -> the same.

    **Cost**: time N C sum_l k_l^2 + 4 N C^2; memory N C L.

    **Args**:
        dim: channels C.
        num_levels: L; 2, the paper's small receptive field; its large one has 3. 0 leaves the mean alone.
        kernel_size: k, in positions, odd; 3, the paper's.
        bias: bias of q, z_0 and g; on, as in the paper's code.

    **Raises**: ValueError for num_levels below 0 and a kernel_size that is not odd.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("focal_modulation", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: neither the norm after the product nor the division of m by L + 1, which its code takes for
    some of its large models.
    """

    card = Card(
        title="Focal modulation", paper="2203.11926", year=2022, cost=(1, 1), mask=False, needs_grid=True,
        sizes={"tiny": {"dim": 8}, "base": {"dim": 64}, "odd": {"dim": 5, "num_levels": 1, "kernel_size": 5, "bias": False}},
        differs="neither the norm after the product nor the division by the levels, which are options of its code",
        cannot={"mask": "it is a layer of maps, and a map has no places to leave out"})

    def __init__(self, dim: int, *, num_levels: int = 2, kernel_size: int = 3, bias: bool = True):
        super().__init__(dim)
        check_odd("kernel_size", kernel_size)
        if not isinstance(num_levels, int) or num_levels < 0:
            raise bad_value("num_levels", got=repr(num_levels), expected="a whole number of levels >= 0", do="The paper's are 2 and 3.")
        sides = range(kernel_size, kernel_size + 2 * num_levels, 2)
        self.widths = dim, dim, num_levels + 1
        self.expand = nn.Conv2d(dim, sum(self.widths), 1, bias=bias)
        self.levels = nn.ModuleList(nn.Conv2d(dim, dim, k, padding=k // 2, groups=dim, bias=False) for k in sides)
        self.modulator = nn.Conv2d(dim, dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def mix(self, x: Tensor) -> Tensor:
        query, context, gates = self.expand(x).split(self.widths, dim=1)
        *local, whole = gates.split(1, dim=1)
        total = 0
        for level, gate in zip(self.levels, local):
            context = F.gelu(level(context))
            total = total + gate * context
        total = total + whole * F.gelu(context.mean((2, 3), keepdim=True))
        return self.proj(query * self.modulator(total))
