"""alpha-entmax: from softmax (alpha = 1) to sparsemax (alpha = 2), differentiable in the scores and in alpha."""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = 10  # from float32's largest error to its smallest for alpha up to 1.9; the last bits of float64 take one or two fewer


def entmax(scores: Tensor, alpha: Tensor) -> Tensor:
    """p_j = max((alpha - 1) s_j - tau, 0)^(1 / (alpha - 1)) over the last axis, with tau such that they sum to 1 (arXiv 1905.05702).

    tau is the root of |x - tau|_p = 1, p = 1 / (alpha - 1), which is convex in it: Newton's method from below never passes it.
    The steps have no gradient; one more behind them has that of the implicit function that tau is of the scores and of alpha.

    Args:
        scores: (..., N).
        alpha: in (1, 2), broadcast to (..., 1).
    """
    power = 1 / (alpha - 1)
    x = (alpha - 1) * scores
    with torch.no_grad():
        tau = x.amax(-1, keepdim=True) - 1
        for _ in range(STEPS):
            base = (x - tau).clamp(min=0)
            slope = base.pow(power - 1)
            total = (slope * base).sum(-1, keepdim=True)
            tau = tau + total * (1 - total.pow(-1 / power)) / slope.sum(-1, keepdim=True)
        slope = power * (x - tau).clamp(min=0).pow(power - 1).sum(-1, keepdim=True)
    tau = tau + ((x - tau).clamp(min=0).pow(power).sum(-1, keepdim=True) - 1) / slope
    return (x - tau).clamp(min=0).pow(power)
