"""Attention by learned relative positions, with or without what the places contain."""

from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.layers.hybrid.base import WideHeads
from layerzoo.ops.attention import attend
from layerzoo.positions.learned_offsets import LearnedOffsets


class LearnedRelative(WideHeads):
    """Multi-head attention by the learned relative encoding, alone or added to the scores of contents.

    **Paper**: On the Relationship between Self-Attention and Convolutional Layers, arXiv 1911.03584.

    y_i = W_o (b + sum_h sum_j softmax_j(e_h(j - i) + q_hi . k_hj / sqrt(C)) W_h x_j), e_h(dy, dx) = u_h . r(dy) + w_h . c(dx) with tables r
    and c; the product of queries and keys is there with `content` alone. Without it weights are products of those of rows and of columns.

    **Shape**: (B, C, H, W) or (B, N, C) with `grid=` -> the same; offsets beyond the tables count as the farthest there.

    **Cost**: without content time h N C (H + W) + h N C^2, memory h N C; with it, or a mask, N^2 in place of N (H + W), and h N^2.

    **Args**:
        dim: channels C of the input, the output and of every head.
        num_heads: h; 9, the paper's.
        grid: (H, W) of the map the tables are built for.
        content: add the scores of queries and keys of C channels per head; off.

    **Raises**: ValueError for num_heads below 1 and a grid that is not (H, W), and in `forward` for tokens without `grid=`.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("learned_relative", dim=64, grid=(7, 5))(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: no dropout of attention weights.
    """

    card = Card(
        title="Self-attention with learned relative encoding", paper="1911.03584", year=2019, cost=(1.5, 1), needs_grid=True,
        sizes={"tiny": {"dim": 8, "num_heads": 2, "grid": (4, 6)}, "base": {"dim": 64, "grid": (16, 16)},
               "odd": {"dim": 15, "num_heads": 3, "grid": (3, 4), "content": True}},
        differs="no dropout of attention weights")

    def __init__(self, dim: int, *, num_heads: int = 9, grid: tuple[int, int], content: bool = False):
        super().__init__(dim, num_heads)
        self.position = LearnedOffsets(num_heads, grid=grid, dim=dim)
        self.grid = self.position.grid
        self.query, self.key = (nn.Linear(dim, num_heads * dim) for _ in range(2)) if content else (None, None)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        if self.query is None:
            return super().mix(tokens, grid, mask)
        q, k = (part(tokens).unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in (self.query, self.key))
        return self.finish(attend(q, k, self.values(tokens), mask, self.position.bias(grid)).sum(1))
