"""ST-MoE: every token goes through the two gated units that its router likes best, and a loss keeps the router's scores small."""

from torch import Tensor

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.ffn.base import RoutedFFN
from layerzoo.ops.auxiliary import add_loss
from layerzoo.ops.experts import top_two, z_loss


class STMoE(RoutedFFN):
    """The per-position unit of ST-MoE: top-2 experts with the router z-loss.

    **Paper**: ST-MoE: Designing Stable and Transferable Sparse Expert Models, arXiv 2202.08906.

    y = g_1 E_1(x) + g_2 E_2(x), g = p_1 / (p_1 + p_2) and p_2 / (p_1 + p_2), for the two largest of p = softmax(s), s = W_r x, in
    float32; E_e(x) = W_2e (gelu(W_e x) * V_e x). In training the second term is there with probability min(1, g_2 / threshold), else
    always. In each sample an expert has ceil(capacity_factor N / E) slots, for first choices in the order of the positions, then for
    second ones; a choice that finds none adds nothing.

    Losses: `balance`, balance_weight E sum_e f_e P_e, f_e the share of tokens whose best is e and P_e the mean of p_e; `router_z`,
    z_weight mean (log sum_e exp s_e)^2. Statistics: `drop_rate`, choices without a slot; `router_collapse`, 1 - H(f) / log E.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same.

    **Cost**: time N C^2 mlp_ratio capacity_factor + N C E; memory N C mlp_ratio capacity_factor + N E; 2 E C^2 mlp_ratio parameters.

    **Args**:
        dim: channels C.
        num_experts: E; 8, where the paper has 32 and 64 for groups of many sequences.
        mlp_ratio: 3/2 of the hidden channels of an expert over C; 4, so it has as many parameters as `mlp`.
        capacity_factor: slots in training over N / E, for both choices together; 1.25, the paper's.
        eval_capacity_factor: the same in evaluation; 2, the paper's.
        threshold: gate above which the second expert is certain; 0.2, the paper's code; 0 = it is always.
        balance_weight: of the balance loss; 0.01, the paper's.
        z_weight: of the z-loss; 0.001, the paper's.
        dropout: probability of dropping a hidden or an output channel; 0, the paper's in pre-training.
        causal: tokens are served one by one, and an expert has ceil(capacity_factor t / E) slots up to token t, so that position i sees
            positions up to i in row-major order.

    **Raises**: ValueError for num_experts below 2, capacity factors of 0 or less, a threshold outside [0, 1], and an mlp_ratio that
    leaves no hidden channel.

    **Example**:
        >>> import torch
        >>> STMoE(64, num_experts=4)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: a group is one image; in evaluation nothing is drawn. The dense unit that the paper sets beside the
    experts, and which blocks have experts, are the model's choice: ffn=["swiglu", "st_moe"] is cycled over the blocks.
    """

    card = Card(
        title="ST-MoE mixture of experts", paper="2202.08906", year=2022, survey="Sparse", cost=(1, 1), causal=True,
        sizes={"tiny": {"dim": 8, "num_experts": 3, "mlp_ratio": 2, "eval_capacity_factor": 0.5}, "base": {"dim": 64},
               "odd": {"dim": 5, "num_experts": 4, "mlp_ratio": 2.5, "eval_capacity_factor": 1.5}},
        differs="a group is one image; no draws in evaluation; the dense unit beside the experts is the model's choice",
        cannot={"constructor": "the paper's two capacities, threshold and two losses, and causal"})

    def __init__(
        self, dim: int, *, num_experts: int = 8, mlp_ratio: float = 4.0, capacity_factor: float = 1.25, eval_capacity_factor: float = 2.0,
        threshold: float = 0.2, balance_weight: float = 0.01, z_weight: float = 0.001, dropout: float = 0.0, causal: bool = False,
    ):
        super().__init__(
            dim, num_experts, top_k=2, gated=True, mlp_ratio=mlp_ratio, capacity_factor=capacity_factor,
            eval_capacity_factor=eval_capacity_factor, balance_weight=balance_weight, dropout=dropout, causal=causal)
        if not 0 <= threshold <= 1:
            raise bad_value("threshold", got=threshold, expected="a gate in [0, 1]", do="0.2 is usual; 0 = always a second expert.")
        self.threshold, self.z_weight = threshold, z_weight

    def choose(self, probs: Tensor) -> tuple[Tensor, Tensor]:
        return top_two(probs, self.threshold if self.training else 0)

    def report(self, logits: Tensor, probs: Tensor, first: Tensor, real: Tensor) -> None:
        super().report(logits, probs, first, real)
        add_loss("router_z", z_loss(logits, real), self.z_weight)
