"""Multi-head self-attention: every position attends to every position, itself included."""

from torch import Tensor

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import HeadsLayer, check_choice, check_grid
from layerzoo.ops.attention import attend, attend_unnormalised
from layerzoo.positions.relative_bias import RelativeBias
from layerzoo.positions.rope2d import RoPE2D


class MHSA(HeadsLayer):
    """Multi-head self-attention.

    **Paper**: Attention Is All You Need, arXiv 1706.03762; relu arXiv 2309.08586; sigmoid arXiv 2409.04431.

    y = W_o concat_h(f(q_h k_h^T / sqrt(d) + b_h) v_h), with q, k, v linear in x and f one of

    - softmax over the keys,
    - relu(s) / N,
    - sigmoid(s - log N).

    **Shape**: (B, C, H, W) or (B, N, C) -> the same.

    **Cost**: time N^2 C; memory N C for softmax (fused), N^2 h for relu and sigmoid, whose weights are made.

    **Args**:
        dim: channels C.
        num_heads: h; None = one head per 32 channels.
        qkv_bias: bias in q, k, v; on, as in ViT.
        normalize: "softmax", "relu" or "sigmoid"; the paper's is softmax.
        position: "none", "rope2d" (rotates q and k) or "relative_bias" (adds b); none, since the paper adds its encoding to the input.
        grid: (H, W) the relative bias is built for; only for position="relative_bias".
        causal: position i sees positions up to i, in row-major order.
        dropout: probability of dropping an attention weight (softmax only); 0, as in ViT.

    **Raises**: ValueError for num_heads that do not divide dim, an unknown normalize or position, dropout with another
    normalize than softmax, and relative_bias without a grid.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("mhsa", dim=64, num_heads=4)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: q, k, v have biases, and positions may enter the scores instead of the input.
    """

    card = Card(
        title="Multi-head self-attention", paper="1706.03762", year=2017, cost=(2, 1), causal=True, symmetry="permutation",
        sizes={"tiny": {"dim": 8, "num_heads": 2}, "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 15, "num_heads": 3, "position": "rope2d"}},
        limit={"equals": "mhsa", "options": {"position": "relative_bias", "grid": (4, 6)}, "grid": (4, 6), "set": {"relative_bias.table": "zeros"}},
        differs="q, k, v have biases; positions may enter the scores (rope2d, relative_bias) instead of the input")

    def __init__(
        self, dim: int, *, num_heads: int | None = None, qkv_bias: bool = True, normalize: str = "softmax", position: str = "none",
        grid: tuple[int, int] | None = None, causal: bool = False, dropout: float = 0.0,
    ):
        super().__init__(dim, num_heads, qkv_bias)
        check_choice("normalize", normalize, ("softmax", "relu", "sigmoid"))
        check_choice("position", position, ("none", "rope2d", "relative_bias"))
        if dropout and normalize != "softmax":
            raise bad_value("dropout", got=dropout, expected=f"0 with normalize={normalize!r}", do="Only softmax weights can be dropped.")
        self.normalize, self.causal, self.dropout = normalize, causal, dropout
        self.rope = RoPE2D(self.head_dim) if position == "rope2d" else None
        self.grid = check_grid(grid) if position == "relative_bias" else None
        self.relative_bias = RelativeBias(self.num_heads, grid=self.grid) if self.grid else None

    @property
    def needs_grid(self) -> bool:
        return self.rope is not None or self.relative_bias is not None

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        q, k, v = self.split(tokens)
        if self.rope is not None:
            q, k = self.rope.rotate(q, grid), self.rope.rotate(k, grid)
        bias = None if self.relative_bias is None else self.relative_bias.bias(grid)
        if self.normalize == "softmax":
            return self.merge(attend(q, k, v, mask, bias, self.causal, self.dropout if self.training else 0.0))
        return self.merge(attend_unnormalised(q, k, v, self.normalize, mask, bias, self.causal))
