"""GShard: every token goes through the two of several MLPs that its router likes best, the second one by chance."""

from torch import Tensor

from layerzoo.card import Card
from layerzoo.ffn.base import RoutedFFN
from layerzoo.ops.experts import top_two

THRESHOLD = 0.5  # the paper's: the second expert is used with probability 2 g_2


class GShardMoE(RoutedFFN):
    """The per-position unit of GShard: top-2 experts, the second with a probability proportional to its gate.

    **Paper**: GShard, arXiv 2006.16668.

    y = g_1 E_1(x) + g_2 E_2(x), g = p_1 / (p_1 + p_2) and p_2 / (p_1 + p_2), for the two largest of p = softmax(W_r x), in float32;
    E_e(x) = W_2e gelu(W_1e x + b_1e) + b_2e. In training the second term is there with probability min(1, 2 g_2), else always. In
    each sample an expert has ceil(capacity_factor N / E) slots, for first choices in the order of the positions, then for second ones;
    a choice that finds none adds nothing.

    Losses: `balance`, balance_weight E sum_e f_e P_e, f_e the share of tokens whose best is e and P_e the mean of p_e.
    Statistics: `drop_rate`, choices without a slot; `router_collapse`, 1 - H(f) / log E.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same.

    **Cost**: time N C^2 mlp_ratio capacity_factor + N C E; memory N C mlp_ratio capacity_factor + N E; 2 E C^2 mlp_ratio parameters.

    **Args**:
        dim: channels C.
        num_experts: E; 8, where the paper has 128 to 2048 for groups of many sequences.
        mlp_ratio: hidden channels of an expert over C; 4, as is usual (the paper: 8).
        capacity_factor: slots over N / E, in training and in evaluation; 2, the paper's.
        balance_weight: of the balance loss; 0.01, the paper's code.
        dropout: probability of dropping a hidden or an output channel; 0, as is usual in vision.
        causal: tokens are served one by one, and an expert has ceil(capacity_factor t / E) slots up to token t, so that position i sees
            positions up to i in row-major order.

    **Raises**: ValueError for num_experts below 2, a capacity_factor of 0 or less, and an mlp_ratio that leaves no hidden channel.

    **Example**:
        >>> import torch
        >>> GShardMoE(64, num_experts=4)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: a group is one image; the balance loss is E^2 times the paper's, as in its code, so that its weight means
    the same for any E; a second choice that is not drawn takes no slot; in evaluation nothing is drawn; GELU in place of ReLU. That every
    second block has experts is the model's choice: give it ffn=["mlp", "gshard_moe"], which is cycled over the blocks.
    """

    card = Card(
        title="GShard mixture of experts", paper="2006.16668", year=2020, survey="Sparse", cost=(1, 1), causal=True,
        sizes={"tiny": {"dim": 8, "num_experts": 3, "mlp_ratio": 2, "capacity_factor": 0.5}, "base": {"dim": 64},
               "odd": {"dim": 5, "num_experts": 4, "mlp_ratio": 2.5, "capacity_factor": 1.5}},
        differs="a group is one image; balance loss times E^2; undrawn second choices take no slot; nothing drawn in evaluation; GELU")

    def __init__(
        self, dim: int, *, num_experts: int = 8, mlp_ratio: float = 4.0, capacity_factor: float = 2.0, balance_weight: float = 0.01,
        dropout: float = 0.0, causal: bool = False,
    ):
        super().__init__(
            dim, num_experts, top_k=2, mlp_ratio=mlp_ratio, capacity_factor=capacity_factor, eval_capacity_factor=capacity_factor,
            balance_weight=balance_weight, dropout=dropout, causal=causal)

    def choose(self, probs: Tensor) -> tuple[Tensor, Tensor]:
        return top_two(probs, THRESHOLD if self.training else 0)
