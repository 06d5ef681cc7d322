"""Factorized Synthesizer: attention scores from two small factors, of learned vectors or of the query's token."""

import torch
from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import check_choice
from layerzoo.layers.efficient.synthesizer_random import Synthesizer
from layerzoo.ops.tables import resize_places


class SynthesizerFactorized(Synthesizer):
    """Random and Dense Synthesizer with fewer parameters.

    **Paper**: Synthesizer: Rethinking Self-Attention for Transformer Models, arXiv 2005.00743.

    y = W_o concat_h(softmax(A_h) v_h), v = W_v x. Kind random: A_h = R_1h R_2h^T, both (N, k). Kind dense: A_h[i, j] = r_i[row of j]
    c_i[column of j], with r_i = R_h f_i, c_i = C_h f_i, f_i = relu(W_1h x_i + b_1h), R_h (H, d) and C_h (W, d): the paper's tiled
    vectors of a and b numbers, a b = N, are those of the rows and the columns of the map, a = H and b = W.

    On a map of another size than `grid` the factors are resized bilinearly along places, rows or columns.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same.

    **Cost**: time N^2 C + N C^2; memory N C + h N^2, kind dense (or with a mask) for each sample; parameters beside value and output
    projections 2 h N k, kind dense (H + W + C) C.

    **Args**:
        dim: channels C.
        grid: (H, W) the factors are built for.
        kind: "random" or "dense".
        rank: k of kind random; 8, the paper's.
        num_heads: h; None = one head per 32 channels.
        value_bias: bias in the value projection; on, as in ViT.
        causal: position i sees positions up to i, in row-major order.

    **Raises**: ValueError for another kind, a rank below 1, a grid that is not (H, W), num_heads that do not divide dim, and in `forward`
    for tokens of another number than the grid's without `grid=`.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("synthesizer_factorized", dim=64, grid=(8, 8), kind="dense")(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: other lengths than the built one run, with resized factors; both factors of kind dense share f_i, and
    they have no biases.
    """

    card = Card(
        title="Factorized Synthesizer", paper="2005.00743", year=2020, survey="LR+LP", cost=(2, 2), causal=True, needs_grid=True,
        sizes={"tiny": {"dim": 8, "grid": (3, 4), "num_heads": 2, "rank": 3}, "base": {"dim": 64, "grid": (8, 8), "num_heads": 4},
               "odd": {"dim": 15, "grid": (5, 3), "num_heads": 3, "kind": "dense", "value_bias": False}},
        differs="other lengths than the built one run, with resized factors; both factors of kind dense share a hidden layer",
        cannot={"padding": "the factors belong to places, rows or columns of the grid, and padding makes another grid"})

    def __init__(
        self, dim: int, *, grid: tuple[int, int], kind: str = "random", rank: int = 8, num_heads: int | None = None,
        value_bias: bool = True, causal: bool = False,
    ):
        super().__init__(dim, grid, num_heads, value_bias, causal)
        check_choice("kind", kind, ("random", "dense"))
        if rank < 1:
            raise bad_value("rank", got=rank, expected="a whole number >= 1", do="The paper's is 8.")
        self.kind, (height, width) = kind, self.grid
        if kind == "random":  # the product of the factors starts with variance 1, like the matrix of synthesizer_random
            self.queries, self.keys = (nn.Parameter(torch.randn(self.num_heads, rank, height * width) * rank**-0.25) for _ in range(2))
        else:
            self.hidden = nn.Linear(dim, dim)
            shape, scale = (self.num_heads, dim // self.num_heads), (dim // self.num_heads) ** -0.5
            self.rows, self.columns = (nn.Parameter(torch.randn(*shape, side) * scale) for side in self.grid)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        scores = self.random_scores(grid) if self.kind == "random" else self.dense_scores(tokens, grid)
        return self.weigh(scores, tokens, mask)

    def random_scores(self, grid: tuple[int, int]) -> Tensor:
        """(h, N, N)."""
        queries, keys = (resize_places(t, self.grid, grid) for t in (self.queries, self.keys))
        return queries.mT @ keys

    def dense_scores(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, h, N, N)."""
        hidden = self.split(self.hidden(tokens).relu())
        rows = hidden @ resize_places(self.rows, (self.grid[0], 1), (grid[0], 1))
        columns = hidden @ resize_places(self.columns, (self.grid[1], 1), (grid[1], 1))
        return (rows.unsqueeze(-1) * columns.unsqueeze(-2)).flatten(-2)
