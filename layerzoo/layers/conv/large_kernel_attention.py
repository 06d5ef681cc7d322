"""Large-kernel attention: a large kernel in three small steps gives every channel of every place its weight."""

from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import Layer, check_odd


class LargeKernelAttention(Layer):
    """LKA between the projections of VAN.

    **Paper**: Visual Attention Network, arXiv 2202.09741.

    y = P_2 (u * A(D_k(L u))), u = gelu(P_1 x), with P_1, P_2 and A of C x C at every place, L a depthwise convolution of
    (2d - 1) x (2d - 1) and D_k one of k x k whose places lie d apart; all have biases, and maps are zero outside.

    A place is weighed by what lies up to d - 1 + d (k - 1) / 2 rows and columns away, 11 by default.

    **Shape**: (B, C, H, W) -> the same.

    **Cost**: time N C ((2d - 1)^2 + k^2) + 3 N C^2; memory N C.

    **Args**:
        dim: channels C.
        kernel_size: k, in steps of d positions, odd; 7, the paper's.
        dilation: d, in positions; 3, the paper's.

    **Raises**: ValueError for a kernel_size that is not odd and a dilation below 1.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("large_kernel_attention", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: its code adds the unit's input to its output, beside the residual of the block.
    """

    card = Card(
        title="Large-kernel attention (VAN)", paper="2202.09741", year=2022, cost=(1, 1), mask=False, needs_grid=True,
        symmetry="translation",
        sizes={"tiny": {"dim": 8, "kernel_size": 3, "dilation": 2}, "base": {"dim": 64},
               "odd": {"dim": 5, "kernel_size": 5, "dilation": 1}},
        differs="its code adds the unit's input to its output, beside the residual of the block",
        cannot={"mask": "it is a layer of maps, and a map has no places to leave out"})

    def __init__(self, dim: int, *, kernel_size: int = 7, dilation: int = 3):
        super().__init__(dim)
        check_odd("kernel_size", kernel_size)
        if not isinstance(dilation, int) or dilation < 1:
            raise bad_value("dilation", got=repr(dilation), expected="a whole number of positions >= 1", do="The paper's is 3.")
        reach = kernel_size // 2 * dilation
        self.proj_in = nn.Conv2d(dim, dim, 1)
        self.local = nn.Conv2d(dim, dim, 2 * dilation - 1, padding=dilation - 1, groups=dim)
        self.spread = nn.Conv2d(dim, dim, kernel_size, padding=reach, dilation=dilation, groups=dim)
        self.channels = nn.Conv2d(dim, dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def mix(self, x: Tensor) -> Tensor:
        u = F.gelu(self.proj_in(x))
        return self.proj(u * self.channels(self.spread(self.local(u))))
