"""Per-position units of many experts, of which every token uses one or two."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor, nn

from layerzoo.errors import bad_value
from layerzoo.ffn.mlp import check_hidden
from layerzoo.layers.base import TokenLayer
from layerzoo.ops.auxiliary import add_loss, collecting
from layerzoo.ops.experts import Experts, balance_loss, mix_experts, router_scores


class ExpertsFFN(TokenLayer):
    """Tokens to experts and back: subclasses write `route`.

    The tokens that share the slots of an expert are those of one sample, so no sample changes another.

    Args:
        dim: channels C.
        num_experts: E.
        top_k: experts of a token.
        mlp_ratio: hidden channels of an expert over C; 3/2 of them if gated.
        capacity_factor: slots of an expert in training over N / E.
        eval_capacity_factor: the same in evaluation.
        gated: experts are GEGLU units instead of MLPs.
        dropout: probability of dropping a hidden or an output channel of an expert.
        causal: slots and turns of a token rest on the tokens up to it.
    Raises:
        ValueError: for fewer experts than top_k, a factor of 0 or less and an mlp_ratio that leaves no hidden channel.
    """

    def __init__(
        self, dim: int, num_experts: int, *, capacity_factor: float, eval_capacity_factor: float, top_k: int = 1, mlp_ratio: float = 4.0,
        gated: bool = False, dropout: float = 0.0, causal: bool = False,
    ):
        super().__init__(dim)
        self.causal = causal
        if num_experts < top_k:
            raise bad_value("num_experts", got=num_experts, expected=f"at least {top_k}, which a token takes", do="Choose one such as 8.")
        for what, factor in (("capacity_factor", capacity_factor), ("eval_capacity_factor", eval_capacity_factor)):
            if factor <= 0:
                raise bad_value(what, got=factor, expected="a number > 0, slots over N / E", do="Choose one such as 1.25.")
        hidden = check_hidden(mlp_ratio, dim * mlp_ratio * 2 / 3 if gated else dim * mlp_ratio)
        self.experts = Experts(num_experts, dim, hidden, gated, dropout)
        # whole numbers, since a float would round some counts up and others not
        shares = (Fraction(str(factor)) / num_experts for factor in (eval_capacity_factor, capacity_factor))
        self.shares = [(share.numerator, share.denominator) for share in shares]

    def capacity(self, count: int | Tensor) -> int | Tensor:
        """Slots of an expert for that many tokens of a sample: ceil(capacity_factor count / E)."""
        above, below = self.shares[self.training]
        return -(-count * above // below)

    def route(self, tokens: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """The experts of tokens (B, N, C) and their gates, both (B, k, N), from the best on; a gate of 0 takes no slot."""
        raise NotImplementedError(f"{type(self).__name__} must define route(); see layerzoo/ffn/hash_layer.py for an example")

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        length = tokens.shape[1]
        real = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else mask
        choice, gate = self.route(tokens, real)
        limit = self.capacity(real.cumsum(1) if self.causal else real.sum(1, keepdim=True))
        return mix_experts(self.experts, tokens, choice, gate * real.unsqueeze(1), limit, min(self.capacity(length), length))

    def step(self, token: Tensor, state: tuple[Tensor, int] | None = None) -> tuple[Tensor, tuple[Tensor, int]]:
        """One token (B, C) after those that `state` counts; None before the first. Equals the causal form, token by token."""
        served, count = (token.new_zeros(len(token), self.experts.num_experts, dtype=torch.long), 0) if state is None else state
        choice, gate = self.route(token.unsqueeze(1), token.new_ones(len(token), 1, dtype=torch.bool))
        places, count = choice.squeeze(-1), count + 1
        found = (served.gather(1, places) < self.capacity(count)) & (gate.squeeze(-1) > 0)
        y = mix_experts(self.experts, token.unsqueeze(1), choice, gate * found.unsqueeze(-1), torch.ones_like(places[:, :1]), 1)
        return y.squeeze(1), (served.scatter_add(1, places, found.long()), count)


class RoutedFFN(ExpertsFFN):
    """Experts by the probabilities softmax(W x), in float32: subclasses write `choose`, and add to `report` what losses they have.

    Args:
        balance_weight: of the loss E sum_e f_e P_e.
        the rest: as of ExpertsFFN.
    """

    def __init__(
        self, dim: int, num_experts: int, *, balance_weight: float, capacity_factor: float, eval_capacity_factor: float, top_k: int = 1,
        mlp_ratio: float = 4.0, gated: bool = False, dropout: float = 0.0, causal: bool = False,
    ):
        super().__init__(
            dim, num_experts, top_k=top_k, mlp_ratio=mlp_ratio, capacity_factor=capacity_factor, eval_capacity_factor=eval_capacity_factor,
            gated=gated, dropout=dropout, causal=causal)
        self.router, self.balance_weight = nn.Linear(dim, num_experts, bias=False), balance_weight

    def choose(self, probs: Tensor) -> tuple[Tensor, Tensor]:
        """Experts and gates (B, k, N) from probabilities (B, N, E)."""
        raise NotImplementedError(f"{type(self).__name__} must define choose(); see layerzoo/ffn/switch_moe.py for an example")

    def route(self, tokens: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        logits = router_scores(tokens, self.router.weight)
        probs = logits.softmax(-1)
        choice, gate = self.choose(probs)
        if collecting():
            self.report(logits, probs, choice[:, 0], real)
        return choice, gate

    def report(self, logits: Tensor, probs: Tensor, first: Tensor, real: Tensor) -> None:
        """Auxiliary losses, from the router's (B, N, E) and the first choices (B, N) of the real tokens."""
        add_loss("balance", balance_loss(probs, first, real), self.balance_weight)
