"""EfficientFormer's attention: a learned bias for each distance, heads that talk, and a convolution of the values beside."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.layers.base import TokenLayer, check_choice, check_grid, check_heads
from layerzoo.ops.attention import attend
from layerzoo.ops.offsets import offsets
from layerzoo.ops.relative_logits import pair_scores, resize_offsets
from layerzoo.ops.token_maps import check_count, convolve


class EfficientFormer(TokenLayer):
    """Attention of EfficientFormer (v1) and EfficientFormerV2 (v2).

    **Paper**: EfficientFormer, arXiv 2206.01191; EfficientFormerV2, arXiv 2212.08059.

    v1: y = W_o concat_h(A_h v_h), A_h = softmax(s_h), s_h[i, j] = q_ih k_jh / sqrt(e) + T_h[|row_i - row_j|, |column_i - column_j|].
    v2: y = W_o gelu(concat_h(A_h v_h) + K * v), A_h = b_h + sum_g P_hg softmax(a_g + sum_f Q_gf s_f): the heads talk before and after the
    softmax, and K is a depthwise 3 x 3 convolution.

    **Shape**: (B, C, H, W) or (B, N, C) with `grid=` -> the same; T is resized bilinearly for other maps than `grid`.

    **Cost**: time h N^2 (e + r e), in v2 h^2 N^2 more; memory h N^2; h H W parameters beside the projections.

    **Args**:
        dim: channels C.
        grid: (H, W) the table T is built for.
        num_heads: h; None = one head per 32 channels (the paper has 8 throughout).
        key_dim: e, channels of a query or key; 32, the paper's.
        value_ratio: r, channels of a value over e; 4, the paper's.
        variant: "v1" or "v2"; v2, the later one.

    **Raises**: ValueError for a grid that is not (H, W), num_heads that do not divide dim, a key_dim or value_ratio below 1, an unknown
    variant, and in `forward` for tokens of another number than the grid's without `grid=`.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("efficientformer", dim=64, grid=(7, 7))(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: v2 has no batch norm after its projections, which have biases in its place (folded, the same function).
    The strided form of its third stage is not here.
    """

    card = Card(
        title="Attention of EfficientFormer", paper="2206.01191", year=2022, cost=(2, 2), needs_grid=True,
        sizes={"tiny": {"dim": 8, "grid": (3, 4), "num_heads": 2, "key_dim": 3, "value_ratio": 2}, "base": {"dim": 64, "grid": (8, 8)},
               "odd": {"dim": 15, "grid": (5, 3), "num_heads": 3, "key_dim": 4, "value_ratio": 1, "variant": "v1"}},
        limit={"equals": "mhsa", "options": {"grid": (4, 6), "num_heads": 2, "value_ratio": 1, "variant": "v1"},
               "equals_options": {"num_heads": 2}, "grid": (4, 6), "set": {"table": "zeros"}},
        differs="v2 has no batch norm after its projections, which have biases in its place; the strided form is not here",
        cannot={"padding": "the table spans the grid, and padding makes another grid, for which it is resized"})

    def __init__(
        self, dim: int, *, grid: tuple[int, int], num_heads: int | None = None, key_dim: int = 32, value_ratio: int = 4,
        variant: str = "v2",
    ):
        super().__init__(dim)
        check_choice("variant", variant, ("v1", "v2"))
        check_count("key_dim", key_dim)
        check_count("value_ratio", value_ratio)
        self.grid, self.num_heads, self.key_dim = check_grid(grid), check_heads(dim, num_heads), key_dim
        keys = self.num_heads * key_dim
        self.widths = keys, keys, keys * value_ratio
        self.qkv = nn.Linear(dim, sum(self.widths))
        self.table = nn.Parameter(torch.zeros(self.num_heads, *self.grid))
        self.talk = None
        if variant == "v2":
            self.local = nn.Conv2d(self.widths[2], self.widths[2], 3, padding=1, groups=self.widths[2])
            self.talk = nn.ModuleList(nn.Conv2d(self.num_heads, self.num_heads, 1) for _ in range(2))  # before and after the softmax
        self.proj = nn.Linear(self.widths[2], dim)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        qkv = self.qkv(tokens)
        if mask is not None:
            qkv = qkv.masked_fill(~mask.unsqueeze(-1), 0)  # what heads say after the softmax is heard of masked tokens too
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in qkv.split(self.widths, -1))
        if self.talk is None:
            return self.proj(attend(q, k, v, mask, self.bias(grid)).transpose(1, 2).flatten(2))
        scores = self.talk[0]((q * self.key_dim**-0.5) @ k.mT + self.bias(grid).to(q.dtype))
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], torch.finfo(scores.dtype).min)
        y = (self.talk[1](scores.softmax(-1)).to(v.dtype) @ v).transpose(1, 2).flatten(2)
        return self.proj(F.gelu(y + convolve(self.local, qkv[..., -self.widths[2]:], grid)))

    def bias(self, grid: tuple[int, int]) -> Tensor:
        """T at the distance of each two places of a map of `grid`, (h, N, N)."""
        return pair_scores(resize_offsets(self.table, grid), *(offsets(side, self.table.device).abs() for side in grid))
