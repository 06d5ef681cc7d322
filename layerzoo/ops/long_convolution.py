"""Convolutions as long as the sequence: kernels that are sums of exponentials, and their product by Fourier transforms."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def exponential_sums(weight: Tensor, exponent: Tensor, length: int) -> Tensor:
    """k_l = 2 Re sum_n weight_n exp(l exponent_n), l = 0 ... length - 1.

    With l = a T + b the powers split into two of some sqrt(length) each, and the sums are one real product of matrices: time
    length n and memory sqrt(length) n for each channel, without the (n, length) Vandermonde matrix.

    Args:
        weight: (..., C, n) complex.
        exponent: (C, n) complex.
    Returns:
        (..., C, length) real.
    """
    side = math.ceil(length**0.5)
    inner = torch.arange(side, device=weight.device, dtype=weight.real.dtype)
    outer = side * inner[: math.ceil(length / side)]
    left = weight.unsqueeze(-2) * (outer[:, None] * exponent.unsqueeze(-2)).exp()  # (..., C, rows, n)
    right = (exponent.unsqueeze(-1) * inner).exp()  # (C, n, side)
    real = torch.cat([left.real, -left.imag], -1) @ torch.cat([right.real, right.imag], -2)
    return 2 * real.flatten(-2)[..., :length]


def long_convolution(x: Tensor, kernel: Tensor) -> Tensor:
    """y_i = sum_j kernel_{i - j} x_j for x (..., C, N) and a kernel (C, 2 N), of which the last N places are those of i - j = -N ... -1.

    A kernel (C, N) is zero there: then y_i sees no x_j after it.
    """
    span = 2 * x.shape[-1]
    return torch.fft.irfft(torch.fft.rfft(x, n=span) * torch.fft.rfft(kernel, n=span), n=span)[..., : x.shape[-1]]
