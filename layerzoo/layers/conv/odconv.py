"""Omni-dimensional dynamic convolution: attention over kernels, filters, channels and places makes a kernel for every sample."""

from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import Layer, check_odd
from layerzoo.ops.kernel_mixture import check_mixture, conv_per_sample, mix_kernels

MIN_HIDDEN = 16  # channels of the attention, however few the map has


class ODConv(Layer):
    """Omni-dimensional dynamic convolution.

    **Paper**: Omni-Dimensional Dynamic Convolution, arXiv 2209.07947.

    y_f = sum_c (sum_e a_e W_e[f, c] . s) * x_c with each product scaled by p_f and q_c: shares a of n kernels, and gates p of the
    filters, q of the channels and s of the k x k places, the same for all kernels.

    (p, q, s) = sigmoid(z / t), a = softmax(z' / t), (z, z') = V relu(U mean(x)) + v, and the mean is over the positions.

    **Shape**: (B, C, H, W) -> the same.

    **Cost**: time N C^2 k^2 + n C^2 k^2 per sample; memory N C + C^2 k^2; n C^2 k^2 parameters.

    **Args**:
        dim: channels C.
        kernel_size: k, in positions, odd; 3, as in VGG and ResNet.
        num_experts: n; 4, the larger of the paper's 1 and 4.
        reduction: C over the channels of the attention, which are at least 16; 16, the paper's.
        temperature: t; 1, at which the paper ends. It comes from 30 in the first ten epochs, here by setting `layer.temperature`.

    **Raises**: ValueError for a kernel_size that is not odd, num_experts or a reduction below 1, and a temperature that is not above 0.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("odconv", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: stride 1 and as many channels out as in, dense kernels only; no batch norm in the attention, as its
    code has, so that a sample depends on no other; nothing lowers the temperature by itself.
    """

    card = Card(
        title="ODConv", paper="2209.07947", year=2022, cost=(1, 1), mask=False, needs_grid=True, symmetry="translation",
        sizes={"tiny": {"dim": 8, "num_experts": 2}, "base": {"dim": 64},
               "odd": {"dim": 5, "kernel_size": 5, "num_experts": 3, "reduction": 2, "temperature": 3.0}},
        limit={"equals": "conv", "options": {"num_experts": 1}, "equals_options": {"bias": False}, "grid": (4, 6),
               "set": {"attention.weight": "zeros", "attention.bias": 40}},
        differs="stride 1, as many channels out as in, dense kernels; no batch norm in the attention; nothing lowers the temperature",
        cannot={"mask": "it is a layer of maps, and a map has no places to leave out"})

    def __init__(
        self, dim: int, *, kernel_size: int = 3, num_experts: int = 4, reduction: int = 16, temperature: float = 1.0,
    ):
        super().__init__(dim)
        check_odd("kernel_size", kernel_size)
        check_mixture(num_experts, temperature)
        if reduction < 1:
            raise bad_value("reduction", got=reduction, expected="a number >= 1 to divide the channels by", do="The paper's is 16.")
        self.temperature = temperature
        hidden = max(dim // reduction, MIN_HIDDEN)
        self.heads = dim, dim, kernel_size**2, num_experts
        self.reduce = nn.Linear(dim, hidden, bias=False)
        self.attention = nn.Linear(hidden, sum(self.heads))
        self.conv = nn.Conv2d(dim, num_experts * dim, kernel_size, bias=False)  # the kernels, stacked

    def mix(self, x: Tensor) -> Tensor:
        heads = self.attention(F.relu(self.reduce(x.mean((2, 3))))) / self.temperature
        *gates, shares = heads.split(self.heads, -1)
        filters, channels, places = (gate.sigmoid() for gate in gates)
        kernels = mix_kernels(self.conv.weight, shares.softmax(-1)) * places.view(-1, 1, 1, *self.conv.kernel_size)
        y = conv_per_sample(x * channels[..., None, None], kernels)  # gates of channels and filters cost less on maps than on kernels
        return y * filters[..., None, None]
