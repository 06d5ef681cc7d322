"""RepVGG: a 3x3 convolution, a 1x1 and the identity, each with a batch norm, trained side by side and fused into one."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.layers.base import Layer, check_odd
from layerzoo.layers.conv.conv import Conv


class RepVGGConv(Layer):
    """Re-parametrised convolution.

    **Paper**: RepVGG, arXiv 2101.03697.

    y = norm_k(W * x) + norm_1(V x) + norm_0(x), with W of k x k, V of 1 x 1, x = 0 outside the map, and a batch norm for each branch.

    `fuse()` returns the layer `conv` that is the same function as this one in eval mode, where a batch norm is a scale and a shift of
    each channel: its kernel is the sum of the scaled W, V and 1 (the latter two in the middle), its bias the sum of the shifts.

    **Shape**: (B, C, H, W) -> the same.

    **Cost**: time N C^2 (k^2 + 1), N C^2 k^2 when fused; memory N C.

    **Args**:
        dim: channels C.
        kernel_size: k, in positions, odd; 3, the paper's.

    **Raises**: ValueError for a kernel_size that is not odd. In training a batch norm refuses a single sample of a single place.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> layer, x = lz.create_layer("repvgg_conv", dim=64).eval(), torch.randn(2, 64, 7, 5)
        >>> torch.allclose(layer.fuse()(x), layer(x), atol=1e-5)
        True

    **Differs from the paper**: no ReLU after the sum, which is the block's; no stride and no groups.
    """

    card = Card(
        title="RepVGG convolution", paper="2101.03697", year=2021, cost=(1, 1), mask=False, needs_grid=True, symmetry="translation",
        sizes={"tiny": {"dim": 8}, "base": {"dim": 64}, "odd": {"dim": 5, "kernel_size": 5}},
        limit={"equals": "conv", "equals_options": {"bias": False}, "grid": (4, 6), "tol": 1e-5,  # 1e-5 is the eps of a batch norm
               "set": {"norm.weight": "ones", "norm.bias": "zeros", "point.weight": "zeros", "point_norm.bias": "zeros",
                       "identity_norm.weight": "zeros", "identity_norm.bias": "zeros"}},
        differs="no ReLU after the sum; no stride and no groups",
        cannot={"mask": "it is a layer of maps, and a map has no places to leave out"})

    def __init__(self, dim: int, *, kernel_size: int = 3):
        super().__init__(dim)
        check_odd("kernel_size", kernel_size)
        self.conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = nn.BatchNorm2d(dim)
        self.point = nn.Conv2d(dim, dim, 1, bias=False)
        self.point_norm = nn.BatchNorm2d(dim)
        self.identity_norm = nn.BatchNorm2d(dim)

    def mix(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.point_norm(self.point(x)) + self.identity_norm(x)

    @torch.no_grad()
    def fuse(self) -> Conv:
        """The layer `conv` of the same input and output as this one in eval mode; this layer stays as it is."""
        weight, side = self.conv.weight, self.conv.kernel_size[0]
        point, identity = self.point.weight, torch.eye(self.dim, dtype=weight.dtype, device=weight.device)[..., None, None]
        branches = ((weight, self.norm), (_centred(point, side), self.point_norm), (_centred(identity, side), self.identity_norm))
        scales = [norm.weight * (norm.running_var + norm.eps).rsqrt() for _, norm in branches]
        fused = Conv(self.dim, kernel_size=side).to(weight).train(self.training)
        fused.conv.weight.copy_(sum(scale[:, None, None, None] * kernel for scale, (kernel, _) in zip(scales, branches)))
        fused.conv.bias.copy_(sum(norm.bias - scale * norm.running_mean for scale, (_, norm) in zip(scales, branches)))
        return fused


def _centred(kernel: Tensor, side: int) -> Tensor:
    """A 1x1 kernel in the middle of one of side x side zeros."""
    rim = side // 2
    return F.pad(kernel, (rim, rim, rim, rim))
