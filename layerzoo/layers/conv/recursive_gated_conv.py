"""Recursive gated convolution: depthwise-convolved channels gate what was gated before, order after order."""

from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import Layer, check_odd


class RecursiveGatedConv(Layer):
    """Gated convolutions of growing order (gnConv).

    **Paper**: HorNet, arXiv 2207.14284.

    [p_0, q_0, ..., q_{n-1}] = V_in x, p_{k+1} = g_k(p_k) * (f * q_k) / a, y = V_out p_n: order k has C_k = C / 2^(n-k-1) channels,
    g_k maps C_{k-1} to C_k of them (g_0 nothing), f is a depthwise convolution, and x = 0 outside the map. y is a polynomial of degree
    n + 1 in x.

    **Shape**: (B, C, H, W) -> the same.

    **Cost**: time N C (2 K^2 + 11/3 C), at most, at any order; memory N C.

    **Args**:
        dim: channels C.
        order: n; 3, as the paper has 2 to 5 from its first stage to its last.
        kernel_size: side K of f, in positions, odd; 7, the paper's.
        scale: 1 / a, tames the products; 1/3, that of the paper's models.
        bias: in all projections and in f; on, the paper's.

    **Raises**: ValueError for an order below 1 or with more halvings than dim has, and for a kernel_size that is not odd.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("recursive_gated_conv", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: C_k is rounded down where 2 does not divide it; the variant with a global filter is left out.
    """

    card = Card(
        title="Recursive gated convolution (gnConv)", paper="2207.14284", year=2022, cost=(1, 1), mask=False, needs_grid=True,
        symmetry="translation",
        sizes={"tiny": {"dim": 8, "kernel_size": 3}, "base": {"dim": 64},
               "odd": {"dim": 7, "order": 2, "kernel_size": 5, "scale": 0.5, "bias": False}},
        differs="channels of an order are rounded down; no variant with a global filter",
        cannot={"mask": "it is a layer of maps, and a map has no places to leave out"})

    def __init__(self, dim: int, *, order: int = 3, kernel_size: int = 7, scale: float = 1 / 3, bias: bool = True):
        super().__init__(dim)
        if not 1 <= order <= dim.bit_length():
            expected = f"1 to {dim.bit_length()}, so that halves of dim={dim} remain"
            raise bad_value("order", got=order, expected=expected, do="The paper has 2 to 5.")
        check_odd("kernel_size", kernel_size)
        self.scale = scale
        self.dims = [dim >> k for k in reversed(range(order))]
        self.proj_in = nn.Conv2d(dim, self.dims[0] + sum(self.dims), 1, bias=bias)
        self.conv = nn.Conv2d(sum(self.dims), sum(self.dims), kernel_size, padding=kernel_size // 2, groups=sum(self.dims), bias=bias)
        self.grow = nn.ModuleList(nn.Conv2d(a, b, 1, bias=bias) for a, b in zip(self.dims, self.dims[1:]))
        self.proj_out = nn.Conv2d(dim, dim, 1, bias=bias)

    def mix(self, x: Tensor) -> Tensor:
        p, q = self.proj_in(x).split([self.dims[0], sum(self.dims)], 1)
        gate, *gates = (self.conv(q) * self.scale).split(self.dims, 1)
        p = p * gate
        for grow, gate in zip(self.grow, gates):
            p = grow(p) * gate
        return self.proj_out(p)
