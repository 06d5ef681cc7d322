"""Convolutions as attention, and attention by places back as convolutions (arXiv 1911.03584)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.errors import bad_value
from layerzoo.layers.hybrid.base import WideHeads
from layerzoo.ops.linear_recurrence import full_precision
from layerzoo.ops.offsets import outer_sum
from layerzoo.positions.base import Position
from layerzoo.positions.quadratic import Quadratic


class ConvAsAttention(nn.Module):
    """A convolution as multi-head attention with the quadratic encoding: one head per place of the kernel.

    y_q = b + sum_h sum_k softmax_k(-alpha |k - q - c_h|^2) W_h x_k over the places k of the padded map, q the centre of each window. As alpha
    grows, the softmax leaves k = q + c_h alone. Weights of rows and of columns are made, never those of all pairs.

    Args:
        conv: its weights are copied; stride, padding, its mode, dilation and groups are kept.
        alpha: sharpness in 1 / places^2; None = enough for the weight's dtype (`sharpness`).
    """

    def __init__(self, conv: nn.Conv2d, alpha: float | None = None):
        super().__init__()
        self.conv = copy.deepcopy(conv)  # holds the values W_h and b, and how windows lie
        self.position = Quadratic(math.prod(conv.kernel_size)).to(conv.weight)
        rows, columns = (step * (torch.arange(k) - (k - 1) / 2) for k, step in zip(conv.kernel_size, conv.dilation))
        alpha = sharpness(conv.weight.dtype) if alpha is None else alpha
        with torch.no_grad():
            self.position.centers.copy_(torch.cartesian_prod(rows, columns).view(-1, 2))
            self.position.spreads.fill_(math.sqrt(2 * alpha))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to what the convolution gives."""
        conv = self.conv
        padded = self.pad(x)
        rows, columns = (scores.softmax(-1).to(x.dtype) for scores in self.apart(padded.shape[2:]))
        mixed = torch.einsum("hyr,bhcrx->bhcyx", rows, torch.einsum("hxs,bcrs->bhcrx", columns, padded))
        weight = conv.weight.flatten(2).unflatten(0, (conv.groups, -1))  # (g, O / g, I / g, h)
        y = torch.einsum("goih,bhgiyx->bgoyx", weight, mixed.unflatten(2, (conv.groups, -1))).flatten(1, 2)
        return y if conv.bias is None else y + conv.bias[:, None, None]

    def pad(self, x: Tensor) -> Tensor:
        """The map with the convolution's own padding around it."""
        conv = self.conv
        if x.ndim != 4 or x.shape[1] != conv.in_channels:
            raise bad_value("input of ConvAsAttention", got=tuple(x.shape), expected=f"a map (B, {conv.in_channels}, H, W)", do="Check the channels and the layout.")
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        return F.pad(x, conv._reversed_padding_repeated_twice, mode=mode)

    def apart(self, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Scores of rows (h, H_out, H) and of columns (h, W_out, W) for a padded map of `size`."""
        centers, spreads = full_precision(self.position.centers, self.position.spreads)
        scores = []
        for side, length in enumerate(size):
            reach = self.conv.dilation[side] * (self.conv.kernel_size[side] - 1)
            if length <= reach:
                raise bad_value(
                    "input of ConvAsAttention", got=f"{length} places along axis {side + 2}, padding included", expected=f"more than {reach}",
                    do="Pass a larger map, as the convolution needs too.")
            query = torch.arange(0, length - reach, self.conv.stride[side], device=centers.device) + reach / 2
            gap = torch.arange(length, device=centers.device) - query[:, None] - centers[:, side, None, None]
            scores.append(-0.5 * spreads.square()[:, None, None] * gap.square())
        return tuple(scores)

    def attention(self, size: tuple[int, int]) -> Tensor:
        """The whole weights (h, H_out W_out, H W) for a padded map of `size` = (H, W)."""
        return outer_sum(*self.apart(size)).softmax(-1)


def sharpness(dtype: torch.dtype) -> float:
    """alpha at which the four nearest places together get less weight than a sixteenth of the dtype's rounding."""
    return math.log(64 / torch.finfo(dtype).eps)


def conv_to_attention(module: nn.Module, alpha: float | None = None) -> nn.Module:
    """Multi-head attention equal to a convolution, or a copy of a model with every convolution so replaced.

    Args:
        module: an nn.Conv2d, or any module that holds some.
        alpha: of the softmax; None = enough for equality in the dtype of the weights.
    Raises:
        ValueError: for a module without any nn.Conv2d and an alpha that is not above 0.
    """
    if alpha is not None and not alpha > 0:
        raise bad_value("alpha", got=alpha, expected="a number > 0", do="Leave it out for one that is enough for equality.")
    return _converted(module, nn.Conv2d, lambda conv: ConvAsAttention(conv, alpha), "nn.Conv2d")


def attention_to_conv(module: nn.Module, mass: float = 0.999) -> nn.Module:
    """The convolution that attention by places is away from the border of a map, or a copy of a model with every such layer replaced.

    The kernel holds sum_h a_h(offset) W_o W_h, a_h the weights of head h around a place far from the border, in the smallest square that has
    `mass` of every head; beyond the border the nearest place is repeated, which is what a sharp head sees there. Centres that have been trained
    onto places thus become these places of the kernel.

    Args:
        module: a layer of `quadratic_attention`, `quadratic_generalized`, `learned_relative` without content or `conv_to_attention`, or a
            module that holds some.
        mass: share of each head's weight within the kernel, in (0, 1).
    Raises:
        ValueError: for a module without any such layer, and a mass outside (0, 1).
    """
    if not 0 < mass < 1:
        raise bad_value("mass", got=mass, expected="a number in (0, 1)", do="Use 0.999.")
    return _converted(module, (WideHeads, ConvAsAttention), lambda layer: _as_conv(layer, mass), "attention by places alone")


def _converted(module: nn.Module, kinds: type | tuple, convert: Callable[[nn.Module], nn.Module], what: str) -> nn.Module:
    if isinstance(module, kinds):
        return convert(module)
    names = [name for name, m in module.named_modules() if isinstance(m, kinds)]
    if not names:
        raise bad_value("module", got=type(module).__name__, expected=f"{what}, or a module that holds some", do="Pass the layer or the model itself.")
    module = copy.deepcopy(module)
    for name in names:
        parent, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(parent), leaf, convert(module.get_submodule(name)))
    return module


FARTHEST = 31  # places from the centre that a kernel may reach


@torch.no_grad()
def _as_conv(layer: WideHeads | ConvAsAttention, mass: float) -> nn.Conv2d:
    if isinstance(layer, ConvAsAttention):
        return _rounded(layer)
    if getattr(layer, "query", None) is not None:
        raise bad_value("layer", got="learned_relative with content", expected="attention by places alone", do="Contents have no kernel.")
    side = 2 * FARTHEST + 1
    weights = _around(layer.position, side).softmax(-1).unflatten(1, (side, side))  # (h, side, side)
    reach = next((r for r in range(FARTHEST) if _within(weights, r).sum((1, 2)).min() >= mass), FARTHEST)
    kept = _within(weights, reach)
    dim, proj = layer.dim, layer.proj
    value = proj.weight @ layer.value.weight.unflatten(1, (layer.num_heads, dim)).transpose(0, 1)  # (h, C, C)
    conv = nn.Conv2d(dim, dim, 2 * reach + 1, padding=reach, padding_mode="replicate").to(proj.weight)
    conv.weight.copy_(torch.einsum("hyx,hoi->oiyx", kept.to(value.dtype), value))
    conv.bias.copy_(proj.weight @ layer.value.bias + proj.bias)
    return conv


def _around(position: Position, side: int) -> Tensor:
    """Scores (h, side^2) of the middle place of a square map, without those of all others."""
    if position.separable:
        return outer_sum(*(scores[:, side // 2: side // 2 + 1] for scores in position.apart((side, side)))).squeeze(1)
    centers, spreads = full_precision(position.centers, position.spreads)
    place = torch.arange(side, device=centers.device) - side // 2
    gap = torch.cartesian_prod(place, place) - centers[:, None]  # (h, side^2, 2)
    return -0.5 * (gap @ spreads.mT).square().sum(-1)


def _within(weights: Tensor, reach: int) -> Tensor:
    part = slice(FARTHEST - reach, FARTHEST + reach + 1)
    return weights[:, part, part]


def _rounded(layer: ConvAsAttention) -> nn.Conv2d:
    """The convolution whose kernel has each head's values at the place nearest to its centre."""
    conv = copy.deepcopy(layer.conv)
    height, width = conv.kernel_size
    step = torch.tensor(conv.dilation).to(layer.position.centers)
    place = (layer.position.centers / step + (torch.tensor(conv.kernel_size).to(step) - 1) / 2).round().long()
    if (place < 0).any() or (place >= torch.tensor(conv.kernel_size, device=place.device)).any():
        raise bad_value(
            "centres", got=f"some beyond the {height} x {width} kernel", expected="all within half a place of it", do="Convert the layer before it is trained further.")
    conv.weight.zero_().view(*conv.weight.shape[:2], -1).index_add_(2, place[:, 0] * width + place[:, 1], layer.conv.weight.flatten(2))
    return conv
