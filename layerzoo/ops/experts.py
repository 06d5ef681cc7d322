"""Mixtures of experts in static shapes: in every sample an expert has a fixed number of slots, and tokens beyond them pass it by."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.ops.auxiliary import add_statistic, collecting
from layerzoo.ops.linear_recurrence import full_precision, no_autocast


class Experts(nn.Module):
    """E networks of two layers side by side, expert e on row e of the slots: (E, n, C) -> the same.

    Args:
        num_experts: E.
        dim: channels C.
        hidden: channels between the layers.
        gated: W_2 (gelu(W x) * V x) without biases, W and V joined; else W_2 gelu(W_1 x + b_1) + b_2.
        dropout: probability of dropping a hidden or an output channel.
    """

    def __init__(self, num_experts: int, dim: int, hidden: int, gated: bool = False, dropout: float = 0.0):
        super().__init__()
        self.num_experts, self.gated = num_experts, gated
        width = 2 * hidden if gated else hidden
        self.weight1 = nn.Parameter(_uniform(dim, num_experts, dim, width))
        self.weight2 = nn.Parameter(_uniform(hidden, num_experts, hidden, dim))
        self.bias1 = None if gated else nn.Parameter(_uniform(dim, num_experts, 1, width))
        self.bias2 = None if gated else nn.Parameter(_uniform(hidden, num_experts, 1, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, slots: Tensor) -> Tensor:
        hidden = _linear(slots, self.weight1, self.bias1)
        if self.gated:
            gate, value = hidden.chunk(2, -1)
            hidden = F.gelu(gate) * value
        else:
            hidden = F.gelu(hidden)
        return self.dropout(_linear(self.dropout(hidden), self.weight2, self.bias2))


def _uniform(fan_in: int, *shape: int) -> Tensor:
    """As nn.Linear starts."""
    return torch.empty(shape).uniform_(-(fan_in**-0.5), fan_in**-0.5)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.bmm(x, weight) if bias is None else torch.baddbmm(bias, x, weight)


def router_scores(tokens: Tensor, weight: Tensor) -> Tensor:
    """Scores (B, N, E) of tokens (B, N, C) for the rows of weight (E, C), in float32 at least: rounding must not change a choice."""
    with no_autocast(tokens.device):
        return F.linear(*full_precision(tokens, weight))


def top_two(probs: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """The two best experts of every token and their gates, which sum to 1.

    Args:
        probs: (B, N, E).
        threshold: the second expert is used with probability min(1, gate / threshold), else its gate is 0; 0 = always.
    Returns:
        choice and gate, (B, 2, N).
    """
    gate, choice = (t.transpose(1, 2) for t in probs.topk(2, -1))
    gate = gate / gate.sum(1, keepdim=True)
    if threshold:
        used = torch.rand_like(gate[:, 1]) * threshold < gate[:, 1]
        gate = torch.stack([gate[:, 0], gate[:, 1] * used], 1)
    return choice, gate


def mix_experts(experts: Experts, tokens: Tensor, choice: Tensor, gate: Tensor, limit: Tensor, capacity: int) -> Tensor:
    """y = sum_k gate_k E_{choice_k}(x) over the choices that find a slot.

    With one limit for a sample all first choices are served before any second one; with one for each token they are served token by
    token, so that no token changes what those before it get.

    Args:
        experts: E of them.
        tokens: (B, N, C).
        choice: (B, k, N), numbers of experts.
        gate: (B, k, N); 0 = the expert is not used and no slot taken.
        limit: (B, 1), slots of an expert that a sample may fill, or (B, N), those that it may up to each token, which only grow.
        capacity: the most of them.
    """
    batch, count, length = choice.shape
    total = experts.num_experts * batch * capacity
    used = gate > 0
    if limit.shape[1] == 1:
        slot = _slots(choice.flatten(1), used.flatten(1), limit, capacity, experts.num_experts).view_as(choice)
    else:
        by_token = (choice.mT.flatten(1), used.mT.flatten(1), limit.repeat_interleave(count, 1))
        slot = _growing_slots(*by_token, capacity, experts.num_experts).view(batch, length, count).mT
    found = slot < total
    here = torch.arange(batch * length, device=tokens.device).view(batch, 1, length).expand_as(slot)
    # an empty slot computes the first token, in vain
    source = torch.zeros(total + 1, dtype=torch.long, device=tokens.device).scatter(0, slot.flatten(), here.flatten())[:total]
    y = experts(tokens.flatten(0, 1).index_select(0, source).unflatten(0, (experts.num_experts, -1))).flatten(0, 1)
    if collecting():
        _report(choice[:, 0], used, found, experts.num_experts)
    weight, row = (gate * found).to(y.dtype).unsqueeze(-1), slot.clamp(max=total - 1)
    parts = [y.index_select(0, row[:, i].flatten()).view(batch, length, -1) * weight[:, i] for i in range(count)]
    return parts[0] if count == 1 else parts[0] + parts[1]


def _slots(choice: Tensor, used: Tensor, limit: Tensor, capacity: int, num_experts: int) -> Tensor:
    """(B, n): the slot of each choice, served in order. Those of expert e and sample b start at (e B + b) capacity; E B capacity = none."""
    turn = _asked(choice, used, num_experts).gather(-1, choice.unsqueeze(-1)).squeeze(-1) - 1
    return torch.where(used & (turn < limit), _first_slots(choice, capacity) + turn, num_experts * len(choice) * capacity)


def _growing_slots(choice: Tensor, used: Tensor, limit: Tensor, capacity: int, num_experts: int) -> Tensor:
    """The same where the limit (B, n) grows: asked D_i times up to choice i, an expert has served D_i + min(0, min_{j <= i} limit_j - D_j)."""
    asked = _asked(choice, used, num_experts)
    served = asked + (limit.unsqueeze(-1) - asked).cummin(1).values.clamp(max=0)
    before, after = (t.gather(-1, choice.unsqueeze(-1)).squeeze(-1) for t in (F.pad(served, (0, 0, 1, 0))[:, :-1], served))
    return torch.where(after > before, _first_slots(choice, capacity) + before, num_experts * len(choice) * capacity)


def _asked(choice: Tensor, used: Tensor, num_experts: int) -> Tensor:
    """(B, n, E): how often each expert was asked, up to each choice."""
    hits = (choice.unsqueeze(-1) == torch.arange(num_experts, device=choice.device)) & used.unsqueeze(-1)
    return hits.cumsum(1, dtype=torch.int32)


def _first_slots(choice: Tensor, capacity: int) -> Tensor:
    return (choice * len(choice) + torch.arange(len(choice), device=choice.device).unsqueeze(1)) * capacity


def _report(first: Tensor, used: Tensor, found: Tensor, num_experts: int) -> None:
    """The share of choices without a slot, and how uneven the first choices are: 0 = even, 1 = all of one expert."""
    add_statistic("drop_rate", (used & ~found).sum() / used.sum().clamp(min=1))
    if num_experts > 1:
        load = torch.zeros(num_experts, device=first.device).index_add(0, first.flatten(), used[:, 0].flatten().float())
        entropy = torch.special.entr(load / load.sum().clamp(min=1)).sum()
        add_statistic("router_collapse", 1 - entropy / math.log(num_experts))


def balance_loss(probs: Tensor, first: Tensor, real: Tensor) -> Tensor:
    """E sum_e f_e P_e, mean over samples: f_e is the share of a sample's tokens whose first choice is e, P_e their mean probability of e.

    1 if balanced. Of the two only P has a gradient.

    Args:
        probs: (B, N, E).
        first: (B, N), first choices.
        real: (B, N) bool.
    """
    num_experts = probs.shape[-1]
    chosen = (first.unsqueeze(-1) == torch.arange(num_experts, device=first.device)).to(probs.dtype)
    return _sample_mean(num_experts * (_token_mean(chosen, real) * _token_mean(probs, real)).sum(-1), real)


def z_loss(logits: Tensor, real: Tensor) -> Tensor:
    """(log sum_e exp logit_e)^2, mean over the tokens of a sample, then over samples."""
    return _sample_mean(_token_mean(logits.logsumexp(-1, keepdim=True).square(), real).squeeze(-1), real)


def _token_mean(x: Tensor, real: Tensor) -> Tensor:
    """(B, N, c) -> (B, c)."""
    return (x * real.unsqueeze(-1)).sum(1) / real.sum(1, keepdim=True).clamp(min=1)


def _sample_mean(x: Tensor, real: Tensor) -> Tensor:
    """Mean of (B,) over the samples that have a real token."""
    there = real.any(1)
    return (x * there).sum() / there.sum().clamp(min=1)
