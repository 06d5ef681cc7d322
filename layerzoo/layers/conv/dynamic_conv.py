"""Dynamic convolution: every sample is convolved by its own mixture of a few kernels."""

from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.layers.base import Layer, check_odd
from layerzoo.ops.kernel_mixture import check_mixture, conv_per_sample, mix_kernels


class DynamicConv(Layer):
    """Conditionally parameterised convolution.

    **Paper**: CondConv, arXiv 1904.04971; with a temperature, the attention over kernels of arXiv 1912.03458.

    y = (sum_e a_e W_e) * x + sum_e a_e b_e, a = sigmoid(R mean(x) + r): n kernels W_e of k x k, and the mean is over the positions.

    With temperature t the shares sum to one: a = softmax((R mean(x) + r) / t).

    **Shape**: (B, C, H, W) -> the same.

    **Cost**: time N C^2 k^2 + n C^2 k^2 per sample; memory N C + C^2 k^2; n C^2 k^2 parameters.

    **Args**:
        dim: channels C.
        kernel_size: k, in positions, odd; 3, as in VGG and ResNet.
        num_experts: n; 8, the paper's for EfficientNet-B0. arXiv 1912.03458 has 4.
        temperature: t; None = sigmoids, as in CondConv. A large one keeps all kernels in training: arXiv 1912.03458 lowers it from 30
            to 1 in the first ten epochs, here by setting `layer.temperature`.
        bias: adds the b_e; on, since no batch norm follows.

    **Raises**: ValueError for a kernel_size that is not odd, num_experts below 1 and a temperature that is not above 0.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("dynamic_conv", dim=64, num_experts=4)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: stride 1 and as many channels out as in, dense kernels only; the softmax too has one linear map where
    arXiv 1912.03458 has two, and nothing lowers the temperature by itself.
    """

    card = Card(
        title="CondConv", paper="1904.04971", year=2019, cost=(1, 1), mask=False, needs_grid=True, symmetry="translation",
        sizes={"tiny": {"dim": 8, "num_experts": 2}, "base": {"dim": 64},
               "odd": {"dim": 5, "kernel_size": 5, "num_experts": 3, "temperature": 30.0, "bias": False}},
        limit={"equals": "conv", "options": {"num_experts": 1, "temperature": 1.0}, "grid": (4, 6)},
        differs="stride 1, as many channels out as in, dense kernels; with a temperature, one linear map in place of the two of its paper",
        cannot={"mask": "it is a layer of maps, and a map has no places to leave out"})

    def __init__(
        self, dim: int, *, kernel_size: int = 3, num_experts: int = 8, temperature: float | None = None, bias: bool = True,
    ):
        super().__init__(dim)
        check_odd("kernel_size", kernel_size)
        check_mixture(num_experts, temperature)
        self.temperature = temperature
        self.route = nn.Linear(dim, num_experts)
        self.conv = nn.Conv2d(dim, num_experts * dim, kernel_size, bias=bias)  # the kernels, stacked

    def mix(self, x: Tensor) -> Tensor:
        routes = self.route(x.mean((2, 3)))
        shares = routes.sigmoid() if self.temperature is None else (routes / self.temperature).softmax(-1)
        bias = None if self.conv.bias is None else mix_kernels(self.conv.bias, shares)
        return conv_per_sample(x, mix_kernels(self.conv.weight, shares), bias)
