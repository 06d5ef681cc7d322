"""Classic whole blocks, which bring their own norms and residual and stand beside layers in a pyramid."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.layers.base import check_choice
from layerzoo.models.block import DropPath, LayerScale
from layerzoo.models.stem import conv_norm, create_act
from layerzoo.ops.norms import create_norm
from layerzoo.registry import LAYERS


class Residual(nn.Module):
    """A branch of convolutions with a shortcut, which starts as the shortcut alone."""

    strided = True

    def __init__(self, branch: nn.Sequential, dim_in: int, dim: int, stride: int, drop_path: float):
        super().__init__()
        self.branch = branch
        self.shortcut = nn.Identity() if dim_in == dim and stride == 1 else conv_norm(dim_in, dim, 1, stride)
        self.drop_path = DropPath(drop_path)
        nn.init.zeros_(self.branch[-1][1].weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.drop_path(self.branch(x)))


class Basic(Residual):
    """Two 3x3 convolutions with a shortcut (ResNet-18, arXiv 1512.03385). (B, dim_in, H, W) -> (B, dim, H/stride, W/stride)."""

    def __init__(self, dim_in: int, dim: int, *, stride: int = 1, drop_path: float = 0.0):
        super().__init__(nn.Sequential(conv_norm(dim_in, dim, 3, stride), nn.ReLU(), conv_norm(dim, dim, 3)), dim_in, dim, stride, drop_path)


class Bottleneck(Residual):
    """1x1, 3x3 and 1x1 convolutions with a shortcut (ResNet-50, arXiv 1512.03385; stride in the 3x3).

    Args:
        reduction: dim over the channels of the 3x3 convolution.
    """

    def __init__(self, dim_in: int, dim: int, *, stride: int = 1, drop_path: float = 0.0, reduction: int = 4):
        mid = dim // reduction
        branch = nn.Sequential(conv_norm(dim_in, mid, 1), nn.ReLU(), conv_norm(mid, mid, 3, stride), nn.ReLU(), conv_norm(mid, dim, 1))
        super().__init__(branch, dim_in, dim, stride, drop_path)


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the channel means (arXiv 1709.01507)."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.gate = nn.Sequential(nn.Conv2d(dim, hidden, 1), nn.SiLU(), nn.Conv2d(hidden, dim, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean((2, 3), keepdim=True))


class MBConv(nn.Module):
    """Pre-norm inverted bottleneck with squeeze-excitation, as CoAtNet has it (arXiv 2106.04803): the shortcut is pooled and projected.

    Args:
        expansion: hidden channels over dim.
        pool: of the shortcut where it strides: "max" of 3x3 places, or "mean" of stride x stride.
        act: "gelu", or "gelu_tanh", its approximation, as in MaxViT (arXiv 2204.01697).
        eps: of the batch norms.
        same: pad the strided convolution as TensorFlow does, more zeros at the end.
    """

    strided = True

    def __init__(
        self, dim_in: int, dim: int, *, stride: int = 1, drop_path: float = 0.0, expansion: int = 4, pool: str = "max", act: str = "gelu",
        eps: float = 1e-5, same: bool = False,
    ):
        super().__init__()
        check_choice("pool", pool, ("max", "mean"))
        check_choice("act", act, ("gelu", "gelu_tanh"))
        hidden = expansion * dim
        self.branch = nn.Sequential(
            nn.BatchNorm2d(dim_in, eps=eps), conv_norm(dim_in, hidden, 1, eps=eps), create_act(act),
            conv_norm(hidden, hidden, 3, stride, hidden, eps, same), create_act(act), SqueezeExcite(hidden, max(8, dim // 4)), nn.Conv2d(hidden, dim, 1))
        pools = nn.MaxPool2d(3, stride, 1) if pool == "max" else nn.AvgPool2d(stride, ceil_mode=True)
        self.shortcut = nn.Sequential(pools if stride > 1 else nn.Identity(), nn.Conv2d(dim_in, dim, 1) if dim_in != dim else nn.Identity())
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.drop_path(self.branch(x))


class InvertedResidual(nn.Module):
    """1x1, depthwise 3x3 and 1x1 convolutions (MobileNetV2, arXiv 1801.04381), with SiLU as in MobileViT; a shortcut where the shape stays.

    Args:
        drop_path: probability of dropping the branch, where there is a shortcut.
        expansion: channels of the 3x3 convolution over dim_in.
    """

    strided = True

    def __init__(self, dim_in: int, dim: int, *, stride: int = 1, drop_path: float = 0.0, expansion: int = 4):
        super().__init__()
        hidden = expansion * dim_in
        self.branch = nn.Sequential(
            conv_norm(dim_in, hidden, 1), nn.SiLU(), conv_norm(hidden, hidden, 3, stride, hidden), nn.SiLU(), conv_norm(hidden, dim, 1))
        self.drop_path = DropPath(drop_path) if dim_in == dim and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        return y if self.drop_path is None else x + self.drop_path(y)


class ConvNeXt(nn.Module):
    """7x7 depthwise convolution, LayerNorm and an MLP of ratio 4 in one residual branch (arXiv 2201.03545).

    Args:
        layer_scale: initial residual scale.
        layer: any layer in place of the convolution, as in MetaNeXt (arXiv 2303.16900).
        norm: what Block takes.
        mlp_ratio: hidden channels over dim.
    """

    strided = False

    def __init__(self, dim_in: int, dim: int, *, drop_path: float = 0.0, layer_scale: float = 1e-6, kernel_size: int = 7,
                 layer: str | dict | None = None, norm: str | dict = "layer", mlp_ratio: float = 4.0):
        super().__init__()
        hidden = int(mlp_ratio * dim)
        self.conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim) if layer is None else LAYERS.create(layer, dim)
        self.norm = create_norm(norm, dim)
        self.expand, self.reduce = nn.Conv2d(dim, hidden, 1), nn.Conv2d(hidden, dim, 1)
        self.scale, self.drop_path = LayerScale(dim, layer_scale), DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.scale(self.reduce(F.gelu(self.expand(self.norm(self.conv(x)))))))


class AirBench(nn.Module):
    """Two 3x3 convolutions with batch norm and GELU, max pooling after the first (airbench, arXiv 2404.00498).

    Convolutions start as the identity on their first channels; batch norm has a bias alone and a quick running mean.
    Without a residual, `drop_path` must be 0 and is not taken.
    """

    strided = True

    def __init__(self, dim_in: int, dim: int, *, stride: int = 1):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(dim_in, dim, 3, padding=1, bias=False), nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity()
        self.norm1, self.norm2 = nn.BatchNorm2d(dim, momentum=0.4), nn.BatchNorm2d(dim, momentum=0.4)
        for norm in (self.norm1, self.norm2):
            norm.weight.requires_grad_(False)
        with torch.no_grad():
            for conv in (self.conv1, self.conv2):
                nn.init.dirac_(conv.weight[: conv.in_channels])

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(self.pool(self.conv1(x))))
        return F.gelu(self.norm2(self.conv2(x)))


WHOLE_BLOCKS = {
    "basic": Basic, "bottleneck": Bottleneck, "mbconv": MBConv, "inverted_residual": InvertedResidual, "convnext": ConvNeXt, "airbench": AirBench}
