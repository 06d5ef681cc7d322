"""Balanced assignment: every token to one expert, every expert its equal share of the tokens."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 20  # of pricing
SHARPNESS = 10.0  # scores over their spread are this sharp to the softmax that prices


@torch.no_grad()
def balanced_assignment(scores: Tensor, real: Tensor) -> Tensor:
    """The expert of every token, near the largest sum of scores that shares differing by one token at most allow.

    The experts are priced, by Sinkhorn's iterations, until about equally many tokens prefer each. Then each in turn takes its share of
    the tokens that are left, those that gain most over any later expert, which makes the shares exact.

    Args:
        scores: (B, N, E).
        real: (B, N) bool; what becomes of the other tokens means nothing.
    Returns:
        (B, N), numbers of experts.
    """
    num_experts, here = scores.shape[-1], real.unsqueeze(-1)
    count = real.sum(1, keepdim=True)
    scores = scores - scores.mean(-1, keepdim=True)
    spread = ((scores.square() * here).sum((1, 2), keepdim=True) / (count * num_experts).clamp(min=1).unsqueeze(-1)).sqrt()
    value = SHARPNESS * scores / spread.clamp(min=1e-12)
    for _ in range(ROUNDS):
        load = (value.softmax(-1) * here).sum(1, keepdim=True)
        value = value - (load / count.clamp(min=1).unsqueeze(-1)).clamp(min=1e-6).log()
    later = value.flip(-1).cummax(-1).values.flip(-1)  # the best of this expert and those after it
    expert, free = torch.full_like(real, num_experts - 1, dtype=torch.long), real
    place = torch.arange(real.shape[1], device=real.device).expand_as(expert)
    for e in range(num_experts - 1):
        gain = (value[..., e] - later[..., e + 1]).masked_fill(~free, float("-inf"))
        rank = torch.empty_like(expert).scatter(1, gain.argsort(dim=1, descending=True, stable=True), place)
        taken = free & (rank < (count + num_experts - 1 - e) // num_experts)
        expert, free = torch.where(taken, e, expert), free & ~taken
    return expert
