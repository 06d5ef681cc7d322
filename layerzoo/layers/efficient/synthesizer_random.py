"""Random Synthesizer: attention by a learned or a fixed matrix, the same for every input."""

import torch
from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.layers.base import TokenLayer, check_grid, check_heads
from layerzoo.ops.tables import resize_pairs


class Synthesizer(TokenLayer):
    """Values, output projection and softmax of attention whose scores do not come from pairs of tokens.

    Args:
        dim: channels C.
        grid: (H, W) the tables are built for.
        num_heads: h; None = one head per 32 channels.
        value_bias: bias in the value projection.
        causal: position i sees positions up to i, in row-major order.
    Raises:
        ValueError: for a grid that is not (H, W), and num_heads that do not divide dim.
    """

    def __init__(self, dim: int, grid: tuple[int, int], num_heads: int | None, value_bias: bool, causal: bool):
        super().__init__(dim)
        self.grid, self.num_heads, self.causal = check_grid(grid), check_heads(dim, num_heads), causal
        self.value = nn.Linear(dim, dim, bias=value_bias)
        self.proj = nn.Linear(dim, dim)

    def split(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, C) as heads (B, h, N, d)."""
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def merge(self, heads: Tensor) -> Tensor:
        """Heads (B, h, N, d) joined and projected to (B, N, C)."""
        return self.proj(heads.transpose(1, 2).flatten(2))

    def weigh(self, scores: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """The layer's output for scores (h, N, N) of all samples or (B, h, N, N)."""
        values, lowest = self.split(self.value(tokens)), torch.finfo(scores.dtype).min
        if self.causal:
            future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(future, lowest)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None], lowest)
        weights = scores.softmax(-1).to(values.dtype)
        return self.merge(torch.einsum("hij,bhjd->bhid", weights, values) if weights.ndim == 3 else weights @ values)


class SynthesizerRandom(Synthesizer):
    """Attention without tokens in its weights.

    **Paper**: Synthesizer: Rethinking Self-Attention for Transformer Models, arXiv 2005.00743.

    y = W_o concat_h(softmax(R_h) v_h), v = W_v x, with R_h (N, N) for each head.

    On a map of another size than `grid` both axes of R are resized bilinearly as maps.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same.

    **Cost**: time N^2 C + N C^2; memory N C + h N^2, weights for all samples once (with a mask for each); h N^2 parameters.

    **Args**:
        dim: channels C.
        grid: (H, W) the matrix is built for.
        num_heads: h; None = one head per 32 channels.
        trainable: whether R is learned, the better of the paper's two; False keeps its first draw, in a buffer.
        value_bias: bias in the value projection; on, as in ViT.
        causal: position i sees positions up to i, in row-major order.

    **Raises**: ValueError for a grid that is not (H, W), num_heads that do not divide dim, and in `forward` for tokens of another
    number than the grid's without `grid=`.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("synthesizer_random", dim=64, grid=(8, 8))(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: other lengths than the built one run, with a resized matrix. R starts normal with variance 1, like scaled
    scores of random queries and keys; the paper does not say how.
    """

    card = Card(
        title="Random Synthesizer", paper="2005.00743", year=2020, survey="LR+LP", cost=(2, 2), causal=True, needs_grid=True,
        sizes={"tiny": {"dim": 8, "grid": (3, 4), "num_heads": 2}, "base": {"dim": 64, "grid": (8, 8), "num_heads": 4},
               "odd": {"dim": 15, "grid": (5, 3), "num_heads": 3, "trainable": False, "value_bias": False}},
        differs="other lengths than the built one run, with a resized matrix, which starts normal with variance 1",
        cannot={"padding": "every weight belongs to two places of the grid, and padding makes another grid"})

    def __init__(
        self, dim: int, *, grid: tuple[int, int], num_heads: int | None = None, trainable: bool = True, value_bias: bool = True,
        causal: bool = False,
    ):
        super().__init__(dim, grid, num_heads, value_bias, causal)
        length = grid[0] * grid[1]
        table = torch.randn(self.num_heads, length, length)
        if trainable:
            self.table = nn.Parameter(table)
        else:
            self.register_buffer("table", table)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        return self.weigh(resize_pairs(self.table, self.grid, grid), tokens, mask)
