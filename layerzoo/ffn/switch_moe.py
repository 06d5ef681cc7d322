"""Switch: every token goes through one of several MLPs, the one its router likes best."""

import torch
from torch import Tensor

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.ffn.base import RoutedFFN


class SwitchMoE(RoutedFFN):
    """The per-position unit of the Switch Transformer: top-1 experts.

    **Paper**: Switch Transformers, arXiv 2101.03961.

    y = p_e E_e(x), e = argmax p, p = softmax(W_r x) in float32, E_e(x) = W_2e gelu(W_1e x + b_1e) + b_2e. In each sample an expert has
    ceil(capacity_factor N / E) slots, given in the order of the positions; a token that finds none gets y = 0, and its residual carries it.

    Losses: `balance`, balance_weight E sum_e f_e P_e, f_e the share of tokens whose best is e and P_e the mean of p_e.
    Statistics: `drop_rate`, tokens without a slot; `router_collapse`, 1 - H(f) / log E.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same.

    **Cost**: time N C^2 mlp_ratio capacity_factor + N C E; memory N C mlp_ratio capacity_factor + N E; 2 E C^2 mlp_ratio parameters.

    **Args**:
        dim: channels C.
        num_experts: E; 8, where the paper has up to 2048 for groups of many sequences. With 1 it is `mlp`.
        mlp_ratio: hidden channels of an expert over C; 4, the paper's.
        capacity_factor: slots in training over N / E; 1.25, the largest that the paper finds to pay.
        eval_capacity_factor: the same in evaluation; 2, the paper's code.
        balance_weight: of the balance loss; 0.01, the paper's alpha.
        jitter: in training the router sees x times a uniform draw from 1 - jitter to 1 + jitter; 0.01, the paper's code.
        dropout: probability of dropping a hidden or an output channel; 0, the paper's in pre-training.
        causal: tokens are served one by one, and an expert has ceil(capacity_factor t / E) slots up to token t, so that position i sees
            positions up to i in row-major order.

    **Raises**: ValueError for num_experts below 1, capacity factors of 0 or less, a jitter outside [0, 1), and an mlp_ratio that
    leaves no hidden channel.

    **Example**:
        >>> import torch
        >>> SwitchMoE(64, num_experts=4)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: the tokens that share slots are those of one image, not of a batch; GELU in place of ReLU; weights start
    as those of nn.Linear, not a tenth of the usual.
    """

    card = Card(
        title="Switch mixture of experts", paper="2101.03961", year=2021, survey="Sparse", cost=(1, 1), causal=True,
        sizes={"tiny": {"dim": 8, "num_experts": 3, "mlp_ratio": 2, "eval_capacity_factor": 0.5}, "base": {"dim": 64},
               "odd": {"dim": 5, "num_experts": 4, "mlp_ratio": 2.5}},
        differs="the tokens that share slots are those of one image; GELU in place of ReLU; the usual initialisation")

    def __init__(
        self, dim: int, *, num_experts: int = 8, mlp_ratio: float = 4.0, capacity_factor: float = 1.25, eval_capacity_factor: float = 2.0,
        balance_weight: float = 0.01, jitter: float = 0.01, dropout: float = 0.0, causal: bool = False,
    ):
        super().__init__(
            dim, num_experts, mlp_ratio=mlp_ratio, capacity_factor=capacity_factor, eval_capacity_factor=eval_capacity_factor,
            balance_weight=balance_weight, dropout=dropout, causal=causal)
        if not 0 <= jitter < 1:
            raise bad_value("jitter", got=jitter, expected="a number in [0, 1), the router's noise", do="The paper's code has 0.01.")
        self.jitter = jitter

    def route(self, tokens: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        if self.training and self.jitter:
            tokens = tokens * torch.empty_like(tokens).uniform_(1 - self.jitter, 1 + self.jitter)
        return super().route(tokens, real)

    def choose(self, probs: Tensor) -> tuple[Tensor, Tensor]:
        gate, choice = probs.max(-1)
        return choice.unsqueeze(1), gate.unsqueeze(1)
