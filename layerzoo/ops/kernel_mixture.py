"""Mixtures of kernels: every sample is convolved by a kernel of its own."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from layerzoo.errors import bad_value
from layerzoo.ops.formats import match_format


def check_mixture(num_experts: int, temperature: float | None) -> None:
    """Refuse a mixture of no kernels, and a softmax without a temperature above 0; None = no softmax."""
    if num_experts < 1:
        raise bad_value("num_experts", got=num_experts, expected="a whole number >= 1 of kernels", do="Choose one such as 4 or 8.")
    if temperature is not None and temperature <= 0:
        raise bad_value("temperature", got=temperature, expected="a number > 0", do="Start at 30 and anneal to 1.")


def mix_kernels(kernels: Tensor, shares: Tensor) -> Tensor:
    """One kernel per sample: kernels (n D, ...), n stacked ones, mixed by shares (B, n) to (B, D, ...); so for biases."""
    last = kernels.ndim == 4 and not kernels.is_contiguous()
    kernels = kernels.permute(0, 2, 3, 1) if last else kernels  # as they lie in channels_last: flat, they would be copied whole
    kernels = kernels.unflatten(0, (shares.shape[1], -1))
    mixed = (shares @ kernels.flatten(1)).unflatten(1, kernels.shape[1:])
    return mixed.permute(0, 1, 4, 2, 3) if last else mixed


def conv_per_sample(x: Tensor, kernels: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve every sample by its own kernel, at the same resolution: the samples are groups of one convolution.

    Args:
        x: (B, C, H, W).
        kernels: (B, D, C, k, k), k odd.
        bias: (B, D).
    Returns:
        (B, D, H, W) in the memory format of x.
    """
    bias = None if bias is None else bias.flatten()
    y = F.conv2d(x.reshape(1, -1, *x.shape[2:]), kernels.flatten(0, 1), bias, padding=kernels.shape[-1] // 2, groups=len(x))
    return match_format(y.reshape(*kernels.shape[:2], *x.shape[2:]), x)
