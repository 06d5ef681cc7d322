"""GLaM: every token goes through the two of several MLPs that its router likes best."""

from torch import Tensor

from layerzoo.card import Card
from layerzoo.ffn.gshard_moe import GShardMoE
from layerzoo.ops.experts import top_two


class GLaM(GShardMoE):
    """The per-position unit of GLaM: the weighted mean of top-2 experts.

    **Paper**: GLaM: Efficient Scaling of Language Models with Mixture-of-Experts, arXiv 2112.06905.

    y = g_1 E_1(x) + g_2 E_2(x), g = p_1 / (p_1 + p_2) and p_2 / (p_1 + p_2), for the two largest of p = softmax(W_r x), in float32;
    E_e(x) = W_2e gelu(W_1e x + b_1e) + b_2e. In each sample an expert has ceil(capacity_factor N / E) slots, for first choices in
    the order of the positions, then for second ones; a choice that finds none adds nothing.

    Losses: `balance`, balance_weight E sum_e f_e P_e, f_e the share of tokens whose best is e and P_e the mean of p_e.
    Statistics: `drop_rate`, choices without a slot; `router_collapse`, 1 - H(f) / log E.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same.

    **Cost**: time N C^2 mlp_ratio capacity_factor + N C E; memory N C mlp_ratio capacity_factor + N E; 2 E C^2 mlp_ratio parameters.

    **Args**:
        dim: channels C.
        num_experts: E; 16, where the paper has 64: of the 196 tokens of an image these would see six each.
        mlp_ratio: hidden channels of an expert over C; 4, the paper's.
        capacity_factor: slots over N / E, in training and in evaluation; 2, that of GShard, since the paper gives none.
        balance_weight: of the balance loss; 0.01, the paper's.
        dropout: probability of dropping a hidden or an output channel; 0, as is usual in vision.
        causal: tokens are served one by one, and an expert has ceil(capacity_factor t / E) slots up to token t, so that position i sees
            positions up to i in row-major order.

    **Raises**: ValueError for num_experts below 2, a capacity_factor of 0 or less, and an mlp_ratio that leaves no hidden channel.

    **Example**:
        >>> import torch
        >>> GLaM(64, num_experts=4)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: a group is one image. In the paper every second block has experts, the others a gated unit: that is the
    model's choice, ffn=["swiglu", "glam"], which is cycled over the blocks.
    """

    card = Card(
        title="GLaM mixture of experts", paper="2112.06905", year=2021, survey="Sparse", cost=(1, 1), causal=True,
        sizes={"tiny": {"dim": 8, "num_experts": 3, "mlp_ratio": 2, "capacity_factor": 0.5}, "base": {"dim": 64},
               "odd": {"dim": 5, "num_experts": 4, "mlp_ratio": 2.5, "capacity_factor": 1.5}},
        differs="a group is one image; which blocks have experts is the model's choice")

    def __init__(
        self, dim: int, *, num_experts: int = 16, mlp_ratio: float = 4.0, capacity_factor: float = 2.0, balance_weight: float = 0.01,
        dropout: float = 0.0, causal: bool = False,
    ):
        super().__init__(
            dim, num_experts=num_experts, mlp_ratio=mlp_ratio, capacity_factor=capacity_factor, balance_weight=balance_weight,
            dropout=dropout, causal=causal)

    def choose(self, probs: Tensor) -> tuple[Tensor, Tensor]:
        return top_two(probs, 0)
