"""Dense Synthesizer: each token predicts its own attention weights, without a look at the others."""

import torch
from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.layers.efficient.synthesizer_random import Synthesizer
from layerzoo.ops.attention import attend
from layerzoo.ops.sequence import real_first
from layerzoo.ops.tables import resize_places


class SynthesizerDense(Synthesizer):
    """Attention weights by an MLP of the query's token.

    **Paper**: Synthesizer: Rethinking Self-Attention for Transformer Models, arXiv 2005.00743.

    y_i = W_o concat_h(softmax(W_2h relu(W_1h x_i + b_1h)) v_h), v = W_v x, with W_1h (d, C) and W_2h (N, d): the rows of W_2h are keys
    that belong to places, so this is attention of relu(W_1h x_i + b_1h) to learned keys, and no N x N matrix is kept.

    On a map of another size than `grid` each column of W_2h is resized bilinearly as a map.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same.

    **Cost**: time N^2 C + N C^2; memory N C; N C + C^2 parameters beside value and output projections.

    **Args**:
        dim: channels C.
        grid: (H, W) the weights are built for.
        num_heads: h; None = one head per 32 channels.
        value_bias: bias in the value projection; on, as in ViT.
        causal: position i sees positions up to i, in row-major order.
        dropout: probability of dropping an attention weight; 0, as in ViT.

    **Raises**: ValueError for a grid that is not (H, W), num_heads that do not divide dim, and in `forward` for tokens of another
    number than the grid's without `grid=`.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("synthesizer_dense", dim=64, grid=(8, 8))(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: other lengths than the built one run, with resized weights; the scores have no bias of their own.
    """

    card = Card(
        title="Dense Synthesizer", paper="2005.00743", year=2020, survey="LR+LP", cost=(2, 1), causal=True, needs_grid=True,
        sizes={"tiny": {"dim": 8, "grid": (3, 4), "num_heads": 2}, "base": {"dim": 64, "grid": (8, 8), "num_heads": 4},
               "odd": {"dim": 15, "grid": (5, 3), "num_heads": 3, "value_bias": False}},
        differs="other lengths than the built one run, with resized weights; the scores have no bias of their own",
        cannot={"padding": "every row of W_2 belongs to a place of the grid, and padding makes another grid"})

    def __init__(
        self, dim: int, *, grid: tuple[int, int], num_heads: int | None = None, value_bias: bool = True, causal: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__(dim, grid, num_heads, value_bias, causal)
        self.dropout = dropout
        self.hidden = nn.Linear(dim, dim)
        self.places = nn.Parameter(torch.randn(grid[0] * grid[1], dim) * (dim // self.num_heads) ** -0.5)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        places = resize_places(self.places.T, self.grid, grid).T.contiguous().expand(len(tokens), -1, -1)
        if not self.causal:
            return self.mix_pairs(tokens, places, mask)
        # with the real tokens first, each with its place, no real query sees a masked key
        return real_first(lambda both, real: self.mix_pairs(*both.chunk(2, -1), None), torch.cat([tokens, places], -1), mask)

    def mix_pairs(self, tokens: Tensor, places: Tensor, mask: Tensor | None) -> Tensor:
        """Output for tokens and their places, each (B, N, C)."""
        q, v = self.split(self.hidden(tokens).relu()), self.split(self.value(tokens))
        q = q * q.shape[-1] ** 0.5  # which attention divides by
        dropout = self.dropout if self.training else 0.0
        return self.merge(attend(q, self.split(places).to(q.dtype), v, mask, causal=self.causal, dropout=dropout))
