"""Sinkhorn's balancing in logs, whole or causal, and what its blocks see."""

from __future__ import annotations

import torch
from torch import Tensor

HIDDEN = -1e9  # the log of nothing, from which differences are still finite


def sinkhorn(scores: Tensor, visible: Tensor, num_iterations: int, causal: bool = False) -> Tensor:
    """exp(scores), of which columns, then rows, are divided by their sums, num_iterations times.

    Args:
        scores: (..., n, m), in float32 at least.
        visible: bool, broadcast to the scores; what is not visible stays 0.
        num_iterations: of both divisions.
        causal: divide a column by the sum from its top down to each row, so that no row depends on later ones.
    Returns:
        (..., n, m); rows with anything visible sum to one.
    """
    log = scores.masked_fill(~visible, HIDDEN)
    for _ in range(num_iterations):
        columns = log.logcumsumexp(-2) if causal else log.logsumexp(-2, keepdim=True)
        log = (log - columns).masked_fill(~visible, HIDDEN)
        log = (log - log.logsumexp(-1, keepdim=True)).masked_fill(~visible, HIDDEN)
    return log.exp()


def gumbel_like(x: Tensor) -> Tensor:
    """Standard Gumbel noise of the shape of x."""
    return -torch.empty_like(x).exponential_().clamp(min=torch.finfo(x.dtype).tiny).log()


def with_sorted(order: Tensor, blocks: Tensor) -> Tensor:
    """Blocks, each followed by a sorted one, sum_j order_ij block_j; what is kept for the gradient is the result.

    Args:
        order: (B, h, n, n).
        blocks: (B, n, b, h, d).
    Returns:
        (B, n, h, 2 b, d).
    """
    return _WithSorted.apply(order, blocks)


class _WithSorted(torch.autograd.Function):
    """Of order (B, h, n, n) and blocks (B, n, b, h, d): (B, n, h, 2 b, d)."""

    @staticmethod
    def forward(order, blocks):
        own = blocks.permute(0, 3, 1, 2, 4).contiguous()
        moved = (order @ own.flatten(3)).view_as(own)
        return torch.cat([own.transpose(1, 2), moved.transpose(1, 2)], 3)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx, grad):
        order, both = ctx.saved_tensors
        size = both.shape[3] // 2
        own, moved = both[..., :size, :].transpose(1, 2).flatten(3), grad[..., size:, :].transpose(1, 2).flatten(3)
        blocks = grad[..., :size, :].transpose(1, 2) + (order.mT @ moved).unflatten(3, (size, -1))
        return moved @ own.mT, blocks.permute(0, 2, 3, 1, 4)


def visible_keys(real: Tensor, causal: bool) -> Tensor:
    """(B n, 1, b or 1, 2 b) bool: which keys of its own block, then of its sorted block, a query sees.

    Args:
        real: (B, n, b), tokens of the blocks, real ones first.
        causal: the own block up to the query; the first block sees no sorted one.
    """
    count, size = real.shape[1:]
    own, moved = real.unsqueeze(2), real[:, None, :1].expand(-1, count, -1, -1)  # sorted blocks are as long as the first
    if causal:  # real queries see real keys alone
        own = torch.ones(size, size, dtype=torch.bool, device=real.device).tril().expand(*real.shape, -1)
        moved = (torch.arange(count, device=real.device) > 0)[:, None, None].expand_as(own)
    return torch.cat([own, moved], 3).flatten(0, 1).unsqueeze(1)
