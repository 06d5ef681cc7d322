"""Hash layer: every token goes through one of several MLPs, which a fixed random hash of it names."""

import torch
from torch import Tensor
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.ffn.base import ExpertsFFN
from layerzoo.ops.experts import router_scores


class HashLayer(ExpertsFFN):
    """Experts without a router to learn, and so without a loss to balance it.

    **Paper**: Hash Layers For Large Sparse Models, arXiv 2106.04426.

    y = E_e(x), e = argmax_e r_e . x, with random unit vectors r (E, C), drawn once, in float32; E_e(x) = W_2e gelu(W_1e x + b_1e) + b_2e.
    In each sample an expert has ceil(capacity_factor N / E) slots, given in the order of the positions; a token that finds none gets y = 0.

    Statistics: `drop_rate`, tokens without a slot; `router_collapse`, 1 - H(f) / log E, f_e the share of the tokens whose hash is e.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same.

    **Cost**: time N C^2 mlp_ratio capacity_factor + N C E; memory N C mlp_ratio capacity_factor + N E; 2 E C^2 mlp_ratio parameters.

    **Args**:
        dim: channels C.
        num_experts: E; 8, where the paper has 16 to 128 for batches of many sequences. With 1 it is `mlp`.
        mlp_ratio: hidden channels of an expert over C; 4, the paper's.
        capacity_factor: slots over N / E, in training and in evaluation; 2, since this hash is even only on average.
        dropout: probability of dropping a hidden or an output channel; 0, as is usual in vision.
        causal: tokens are served one by one, and an expert has ceil(capacity_factor t / E) slots up to token t, so that position i sees
            positions up to i in row-major order.

    **Raises**: ValueError for num_experts below 1, a capacity_factor of 0 or less, and an mlp_ratio that leaves no hidden channel.

    **Example**:
        >>> import torch
        >>> HashLayer(64, num_experts=4)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: there the hash is a table over word ids, which patches have not. A hash of the position would be even, but
    the paper finds that the token itself is what to hash, so this is a locality-sensitive hash of its features: equal tokens share an
    expert wherever they are, but a token may move to another as the layers before it learn, and tokens beyond the slots are dropped.
    """

    card = Card(
        title="Hash layer", paper="2106.04426", year=2021, cost=(1, 1), causal=True,
        sizes={"tiny": {"dim": 8, "num_experts": 3, "mlp_ratio": 2, "capacity_factor": 0.5}, "base": {"dim": 64},
               "odd": {"dim": 5, "num_experts": 4, "mlp_ratio": 2.5, "capacity_factor": 0.75}},
        differs="a locality-sensitive hash of features in place of a table over word ids; tokens beyond the slots of an expert are dropped")

    def __init__(
        self, dim: int, *, num_experts: int = 8, mlp_ratio: float = 4.0, capacity_factor: float = 2.0, dropout: float = 0.0,
        causal: bool = False,
    ):
        super().__init__(
            dim, num_experts, mlp_ratio=mlp_ratio, capacity_factor=capacity_factor, eval_capacity_factor=capacity_factor,
            dropout=dropout, causal=causal)
        self.register_buffer("directions", F.normalize(torch.randn(num_experts, dim), dim=-1))

    def route(self, tokens: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        choice = router_scores(tokens, self.directions).argmax(-1).unsqueeze(1)
        return choice, torch.ones_like(choice, dtype=tokens.dtype)
