"""Product-key memory: every position reads a few of very many values, found by comparing half keys only."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import TokenLayer
from layerzoo.ops.auxiliary import add_statistic, collecting
from layerzoo.ops.linear_recurrence import no_autocast


class ProductKeyMemory(TokenLayer):
    """A memory of n^2 values, whose keys are all pairs of two times n half keys.

    **Paper**: Large Memory Layers with Product Keys, arXiv 1907.05242.

    y = sum_h sum_(i, j) in T_h softmax_T(q_h1 . k_h1i + q_h2 . k_h2j) v_(i n + j), where (q_h1, q_h2) is the layer norm of W_h x + b_h and
    T_h holds the pairs of the k largest sums. Only pairs of the k best i with the k best j can be among them, and of these only the
    r-th i with the s-th j where r s <= k. The n^2 values are common to the heads.

    Statistic: `memory_usage`, the share of values that a batch reads.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same.

    **Cost**: time N h (2 C d + 2 n d + k C); memory N (h d + h n + h k + C); n^2 C + 2 h d (C + n) parameters.

    **Args**:
        dim: channels C.
        num_heads: h; 4, the paper's.
        num_keys: n, half keys on each side; 128, so 16384 values, where the paper has 512 and 262144.
        top_k: k, values a head reads; 32, the paper's.
        key_dim: d, width of a half key; 64, half the paper's.

    **Raises**: ValueError for num_heads, num_keys or key_dim below 1, and a top_k that is not in 1 to num_keys^2.

    **Example**:
        >>> import torch
        >>> ProductKeyMemory(64, num_keys=32)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: queries are normalised by layer norm, since the paper's batch norm would let samples change each other. The
    paper's larger learning rate and sparse updates of the values are the optimiser's choice.
    """

    card = Card(
        title="Product-key memory", paper="1907.05242", year=2019, survey="Sparse", cost=(1, 1), causal="always", symmetry="permutation",
        sizes={"tiny": {"dim": 8, "num_heads": 2, "num_keys": 4, "top_k": 3, "key_dim": 4},
               "base": {"dim": 64, "num_keys": 32, "top_k": 8, "key_dim": 16},
               "odd": {"dim": 5, "num_heads": 3, "num_keys": 5, "top_k": 7, "key_dim": 3}},
        differs="layer norm of the queries in place of batch norm; how the values are updated is the optimiser's choice")

    def __init__(self, dim: int, *, num_heads: int = 4, num_keys: int = 128, top_k: int = 32, key_dim: int = 64):
        super().__init__(dim)
        for what, given in (("num_heads", num_heads), ("num_keys", num_keys), ("key_dim", key_dim)):
            if given < 1:
                raise bad_value(what, got=given, expected="a whole number >= 1", do="Choose 4 heads, 128 half keys, of width 64.")
        if not 1 <= top_k <= num_keys**2:
            raise bad_value("top_k", got=top_k, expected=f"1 to {num_keys**2}, the number of values", do="The paper's is 32.")
        self.num_heads, self.num_keys, self.top_k = num_heads, num_keys, top_k
        self.query = nn.Linear(dim, num_heads * 2 * key_dim)
        self.norm = nn.LayerNorm(2 * key_dim)
        bound = key_dim**-0.5  # the paper's code
        self.keys = nn.Parameter(torch.empty(2, num_heads, num_keys, key_dim).uniform_(-bound, bound))
        self.values = nn.Parameter(torch.randn(num_keys**2, dim) * dim**-0.5)
        pairs = [(r, s) for r in range(min(top_k, num_keys)) for s in range(min(top_k, num_keys)) if (r + 1) * (s + 1) <= top_k]
        self.register_buffer("pairs", torch.tensor(pairs).T.contiguous(), persistent=False)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        with no_autocast(tokens.device):  # rounding must not change a choice
            queries = self.norm(self.query(tokens.to(self.query.weight.dtype)).unflatten(-1, (self.num_heads, -1)))
            halves = queries.unflatten(-1, (2, -1)).flatten(0, 1).permute(2, 1, 0, 3)  # (2, h, B N, d)
            scores = (halves.flatten(0, 1) @ self.keys.flatten(0, 1).mT).unflatten(0, (2, -1))
            left, right = self.select(scores.detach())
            weights = (scores[0].gather(-1, left) + scores[1].gather(-1, right)).softmax(-1)
        rows = (left * self.num_keys + right).transpose(0, 1).flatten(1)  # (B N, h k)
        weights = weights.transpose(0, 1).flatten(1)
        if collecting():
            read = weights if mask is None else weights * mask.flatten().unsqueeze(1)
            mass = torch.zeros_like(self.values[:, 0]).index_add(0, rows.flatten(), read.flatten().detach())
            add_statistic("memory_usage", (mass > 0).float().mean())
        return F.embedding_bag(rows, self.values, per_sample_weights=weights, mode="sum").view_as(tokens)

    def select(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """The half keys i and j, each (h, B N, k), of the k largest sums of scores (2, h, B N, n)."""
        best, index = scores.topk(min(self.top_k, self.num_keys), -1)
        r, s = self.pairs
        chosen = (best[0][..., r] + best[1][..., s]).topk(self.top_k, -1).indices
        return index[0].gather(-1, r[chosen]), index[1].gather(-1, s[chosen])
