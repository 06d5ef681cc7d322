"""Stems: image to first map."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.errors import bad_value, unknown_name
from layerzoo.layers.base import check_choice
from layerzoo.ops.norms import create_norm
from layerzoo.ops.same import SamePad

_ACTS = {"gelu": nn.GELU, "gelu_tanh": partial(nn.GELU, "tanh"), "relu": nn.ReLU, "hardswish": nn.Hardswish, "silu": nn.SiLU}


def create_act(name: str) -> nn.Module:
    """An activation: "gelu", "gelu_tanh", "relu", "hardswish" or "silu"."""
    return _ACTS[name]()


def conv_norm(dim_in: int, dim: int, kernel_size: int, stride: int = 1, groups: int = 1, eps: float = 1e-5, same: bool = False) -> nn.Sequential:
    """A convolution without bias, which keeps the size or strides, and batch norm; with same, padded as TensorFlow does."""
    pad = [SamePad(kernel_size, stride)] if same and stride > 1 else []  # with stride 1 it is symmetric
    conv = nn.Conv2d(dim_in, dim, kernel_size, stride, 0 if pad else kernel_size // 2, groups=groups, bias=False)
    return nn.Sequential(*pad, conv, nn.BatchNorm2d(dim, eps=eps))


class Patchify(nn.Module):
    """Patches, linearly embedded (ViT, arXiv 2010.11929); sides that do not divide are padded with zeros.

    Args:
        in_chans: channels of the image.
        dim: channels of the map.
        patch_size: side of a patch in pixels.
        norm: after the embedding: False = none, True = "layer", as in Swin and ConvNeXt, or what Block takes.
        kernel_size: side of what is embedded, in pixels; None = patch_size. More, and patches overlap, as in PoolFormer and PVT v2.
        padding: zeros around the image, in pixels.
    """

    def __init__(
        self, in_chans: int, dim: int, *, patch_size: int = 16, norm: bool | str | dict = False, kernel_size: int | None = None, padding: int = 0,
    ):
        super().__init__()
        side = patch_size if kernel_size is None else kernel_size
        if not side - patch_size <= 2 * padding < side:
            expected = f"{max(0, side - patch_size + 1) // 2} to {(side - 1) // 2}, with which each patch gives one place"
            raise bad_value("padding of the patches", got=padding, expected=expected, do="Choose one of these for this kernel_size.")
        self.stride = patch_size
        self.embed = nn.Conv2d(in_chans, dim, side, patch_size, padding)
        self.norm = create_norm({False: "none", True: "layer"}[norm] if isinstance(norm, bool) else norm, dim)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        x = F.pad(x, (0, -width % self.stride, 0, -height % self.stride))
        return self.norm(self.embed(x))


class OverlapConv(nn.Module):
    """3x3 convolutions of stride 2 with batch norm and GELU or another, then one of stride 1 (early convolutions, arXiv 2106.14881).

    Args:
        stride: total stride, a power of two; 1 = one convolution at full resolution.
        act: "gelu", "gelu_tanh" as in MaxViT (arXiv 2204.01697), "relu" as in EfficientFormer (arXiv 2206.01191), or "hardswish" as in
            LeViT (arXiv 2104.01136).
        act_last: whether it follows the last of those of stride 2 too; off in LeViT.
        proj: the last convolution.
        eps: of the batch norms.
        same: pad strided convolutions as TensorFlow does, more zeros at the end.
    """

    def __init__(
        self, in_chans: int, dim: int, *, stride: int = 4, act: str = "gelu", act_last: bool = True, proj: bool = True, eps: float = 1e-5,
        same: bool = False,
    ):
        super().__init__()
        check_choice("act", act, ("gelu", "gelu_tanh", "relu", "hardswish"))
        self.stride = stride
        steps = max(1, int(math.log2(stride)))
        dims = [in_chans, *(max(dim // 2 ** (steps - 1 - i), 8) for i in range(steps - 1)), dim]
        self.convs = nn.Sequential(*(
            nn.Sequential(*conv_norm(a, b, 3, min(stride, 2), eps=eps, same=same), create_act(act)) for a, b in zip(dims, dims[1:])))
        if not act_last:
            self.convs[-1][-1] = nn.Identity()
        self.proj = nn.Conv2d(dim, dim, 3, 1, 1) if proj else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.convs(x))


class ConvPool(nn.Module):
    """3x3 convolution, ReLU and 3x3 max pooling of stride 2, `num_convs` times (CCT's tokenizer, arXiv 2104.05704)."""

    def __init__(self, in_chans: int, dim: int, *, num_convs: int = 1, conv_stride: int = 1):
        super().__init__()
        self.stride = (2 * conv_stride) ** num_convs
        dims = [in_chans, *(min(64, dim) for _ in range(num_convs - 1)), dim]
        self.convs = nn.Sequential(*(
            nn.Sequential(nn.Conv2d(a, b, 3, conv_stride, 1, bias=False), nn.ReLU(), nn.MaxPool2d(3, 2, 1)) for a, b in zip(dims, dims[1:])))

    def forward(self, x: Tensor) -> Tensor:
        return self.convs(x)


class ConvNormAct(nn.Module):
    """One convolution, batch norm, an activation, and optionally 3x3 max pooling of stride 2 (ResNet, arXiv 1512.03385).

    Args:
        kernel_size: 3 at full resolution is the CIFAR stem; 7 with stride 2 and `pool` is the ImageNet stem.
        width: channels of the map, where the first stage has others, as in ResNet-50; None = dim.
        act: "relu", or "silu" as in MobileViT (arXiv 2110.02178).
    """

    def __init__(
        self, in_chans: int, dim: int, *, kernel_size: int = 3, stride: int = 1, pool: bool = False, width: int | None = None, act: str = "relu",
    ):
        super().__init__()
        check_choice("act", act, ("relu", "silu"))
        self.width = dim = width or dim
        self.stride = stride * (2 if pool else 1)
        self.conv = nn.Conv2d(in_chans, dim, kernel_size, stride, kernel_size // 2, bias=False)
        self.norm = nn.BatchNorm2d(dim)
        self.act = create_act(act)
        self.pool = nn.MaxPool2d(3, 2, 1) if pool else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.act(self.norm(self.conv(x))))


class Whitening(nn.Module):
    """Frozen convolution whose filters whiten image patches, a learned bias and GELU (airbench, arXiv 2404.00498).

    `init_from_data` sets the filters to the eigenvectors of the patch covariance over the root of their eigenvalues,
    and to their negatives; before that they are random and orthogonal. `dim` is 2 in_chans kernel_size^2 whatever is asked.

    Args:
        kernel_size: side of a patch in pixels.
        eps: added to the eigenvalues.
    """

    stride = 1

    def __init__(self, in_chans: int, dim: int, *, kernel_size: int = 2, eps: float = 5e-4):
        super().__init__()
        size = in_chans * kernel_size**2
        self.kernel_size, self.eps = kernel_size, eps
        filters = nn.init.orthogonal_(torch.empty(size, size)).view(size, in_chans, kernel_size, kernel_size)
        self.register_buffer("filters", torch.cat((filters, -filters)))
        self.bias = nn.Parameter(torch.zeros(2 * size))
        self.proj = nn.Conv2d(2 * size, dim, 1) if dim != 2 * size else nn.Identity()

    @torch.no_grad()
    def init_from_data(self, images: Tensor) -> None:
        """Set the filters from normalised images (B, C, H, W)."""
        patches = F.unfold(images.double(), self.kernel_size).transpose(1, 2).flatten(0, 1)
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (vectors / (values + self.eps).sqrt()).T.reshape(-1, *self.filters.shape[1:]).flip(0)
        self.filters.copy_(torch.cat((filters, -filters)))

    def forward(self, x: Tensor) -> Tensor:
        pad = self.kernel_size // 2
        y = F.conv2d(F.pad(x, (pad, self.kernel_size - 1 - pad) * 2), self.filters.to(x.dtype), self.bias.to(x.dtype))
        return self.proj(F.gelu(y))


class GreyLevels(nn.Module):
    """Each pixel's grey as one of 256 learned vectors, of which the model knows no order (Long Range Arena, arXiv 2011.04006).

    Reads the first channel. `init_from_data` learns which normalised values are black and white; before that they are -2 and 2.
    """

    stride, levels = 1, 256

    def __init__(self, in_chans: int, dim: int):
        super().__init__()
        self.embed = nn.Embedding(self.levels, dim)
        self.register_buffer("ends", torch.tensor([-2.0, 2.0]))

    @torch.no_grad()
    def init_from_data(self, images: Tensor) -> None:
        """Set black and white to the least and largest value of normalised images (B, C, H, W)."""
        self.ends.copy_(torch.stack(images[:, 0].aminmax()))

    def forward(self, x: Tensor) -> Tensor:
        low, high = self.ends.to(x.dtype)
        level = ((x[:, 0] - low) / (high - low) * (self.levels - 1)).round().clamp(0, self.levels - 1)
        return self.embed(level.long()).permute(0, 3, 1, 2)


STEMS = {"patchify": Patchify, "overlap": OverlapConv, "conv_pool": ConvPool, "conv": ConvNormAct, "whitening": Whitening, "grey_levels": GreyLevels}


def create_stem(spec: str | dict, in_chans: int, dim: int) -> nn.Module:
    """A stem (B, in_chans, H, W) -> (B, dim, ceil(H / stride), ceil(W / stride)) from its name or {"name": ..., option: ...}."""
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = options.pop("name", None)
    if name not in STEMS:
        raise unknown_name("stem", name, STEMS, "layerzoo.models.stem.STEMS")
    return STEMS[name](in_chans, dim, **options)
