"""BASE layer: tokens are assigned to experts so that each gets equally many, and no loss has to balance them."""

import torch
from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.ffn.base import ExpertsFFN
from layerzoo.ops.assignment import balanced_assignment
from layerzoo.ops.experts import router_scores


class BASELayer(ExpertsFFN):
    """Balanced assignment of experts.

    **Paper**: BASE Layers: Simplifying Training of Large, Sparse Models, arXiv 2103.16716.

    y = sigmoid(w_e . x) E_e(x), E_e(x) = W_2e gelu(W_1e x + b_1e) + b_2e. In training the e of all tokens of a sample are chosen together,
    for a large sum of w_e . x where each expert has N / E tokens, rounded up or down; in evaluation e = argmax_e w_e . x. The choice has
    no gradient; what w learns comes from the sigmoid.

    Statistics: `drop_rate`, tokens without a slot (none in training); `router_collapse`, 1 - H(f) / log E, f_e the share of tokens of e.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same.

    **Cost**: time N C^2 mlp_ratio + N C E, in training and E N log N more, in evaluation times eval_capacity_factor; memory
    N C mlp_ratio + N E; 2 E C^2 mlp_ratio parameters.

    **Args**:
        dim: channels C.
        num_experts: E; 8, where the paper has 128 for batches of many sequences.
        mlp_ratio: hidden channels of an expert over C; 4, the paper's.
        eval_capacity_factor: slots in evaluation over N / E; 2, since shapes are static; E = no token is ever dropped.
        dropout: probability of dropping a hidden or an output channel; 0, as is usual in vision.

    **Raises**: ValueError for num_experts below 1, an eval_capacity_factor of 0 or less, and an mlp_ratio that leaves no hidden channel.

    **Example**:
        >>> import torch
        >>> BASELayer(64, num_experts=4)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: balance is within an image, so no batch is shuffled between workers; the assignment is by Sinkhorn's
    iterations and a rounding to exact shares, not by an auction; in evaluation tokens beyond the slots of an expert get y = 0. The residual
    x + y is the block's, as is the norm; an expert is one unit of two layers.
    """

    card = Card(
        title="BASE layer", paper="2103.16716", year=2021, cost=(1, 1),
        sizes={"tiny": {"dim": 8, "num_experts": 3, "mlp_ratio": 2, "eval_capacity_factor": 0.5}, "base": {"dim": 64},
               "odd": {"dim": 5, "num_experts": 4, "mlp_ratio": 2.5}},
        differs="balanced within an image, by Sinkhorn's iterations and rounding; bounded slots in evaluation; the residual is the block's",
        cannot={"causal": "in training the experts of all tokens of an image are chosen together, the first by the last"})

    def __init__(self, dim: int, *, num_experts: int = 8, mlp_ratio: float = 4.0, eval_capacity_factor: float = 2.0, dropout: float = 0.0):
        super().__init__(
            dim, num_experts, mlp_ratio=mlp_ratio, capacity_factor=1.0, eval_capacity_factor=eval_capacity_factor, dropout=dropout)
        self.centroids = nn.Parameter(nn.init.orthogonal_(torch.empty(num_experts, dim), gain=0.1))  # as in the paper's code

    def route(self, tokens: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        scores = router_scores(tokens, self.centroids)
        choice = balanced_assignment(scores, real) if self.training else scores.argmax(-1)
        gate = scores.gather(-1, choice.unsqueeze(-1)).squeeze(-1).sigmoid()
        return choice.unsqueeze(1), gate.unsqueeze(1)
