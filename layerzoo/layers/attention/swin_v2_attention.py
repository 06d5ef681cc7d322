"""Window attention of Swin V2: scores are cosines with a learned temperature, and the bias is a function of the offset."""

import math

import torch
from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.layers.attention.window_attention import WindowAttention
from layerzoo.ops.neighborhoods import table_scores
from layerzoo.ops.token_maps import check_count

HIDDEN = 512  # of the bias, as in the paper's code
LARGEST_SCALE = 100  # of a cosine: the paper's temperature is at least 0.01


class SwinV2Attention(WindowAttention):
    """Scaled cosine attention inside windows of w x w places, with a log-spaced continuous position bias.

    **Paper**: Swin Transformer V2, arXiv 2111.09883.

    y_i = W_o concat_h(sum_j softmax_j(cos(q_i, k_j) / t_h + 16 sigmoid(G_h(g(i - j)))) v_j), j over the window of i; t_h >= 0.01 is
    learned. G is an MLP of 2, 512 and h channels, and g(u) = sign(u) log2(1 + 8 |u| / (p - 1)) / 3 in rows and in columns.

    Windows and their shift are those of `window_attention`.

    **Shape**: (B, C, H, W) or (B, N, C) with `grid=` -> the same, any H and W.

    **Cost**: time N w^2 C + N C^2; memory N C + N w^2 h.

    **Args**:
        dim: channels C.
        window_size: w, in positions; 8, the paper's for images of 256 x 256.
        pretrained_window_size: p, the window that the weights were trained with; None = w. Another w then goes on with the same G.
        shift: windows shifted by half their side; off: models alternate.
        num_heads: h; None = one head per 32 channels, the paper's.
        qkv_bias: bias in q, k, v; on, as in the paper's code.

    **Raises**: ValueError for a window_size or pretrained_window_size below 1 and for num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("swin_v2_attention", dim=64, window_size=4, shift=True)(torch.randn(2, 64, 9, 5)).shape
        torch.Size([2, 64, 9, 5])

    **Differs from the paper**: keys have a bias too, which its code leaves out; padding is seen by nobody; an axis no longer than w is
    not shifted, whatever the other axis.
    """

    card = Card(
        title="Scaled cosine window attention of Swin V2", paper="2111.09883", year=2021, cost=(1, 1), needs_grid=True,
        sizes={"tiny": {"dim": 8, "num_heads": 2, "window_size": 4}, "base": {"dim": 64, "num_heads": 4, "shift": True},
               "odd": {"dim": 12, "num_heads": 3, "window_size": 3, "pretrained_window_size": 5, "shift": True, "qkv_bias": False}},
        differs="keys have a bias too; padding is seen by nobody; an axis no longer than the window is not shifted",
        cannot={"padding": "with shift, a map no larger than the window is one window; padded beyond it, the map is cut"})

    def __init__(
        self, dim: int, *, window_size: int = 8, pretrained_window_size: int | None = None, shift: bool = False,
        num_heads: int | None = None, qkv_bias: bool = True,
    ):
        super().__init__(dim, window_size=window_size, shift=shift, num_heads=num_heads, qkv_bias=qkv_bias)
        if pretrained_window_size is not None:
            check_count("pretrained_window_size", pretrained_window_size)
        self.pretrained_window_size = pretrained_window_size or window_size
        self.log_scale = nn.Parameter(torch.full((self.num_heads, 1, 1), math.log(10)))
        self.relative_bias = LogSpacedBias(self.num_heads, self.pretrained_window_size)

    def split(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, h, N, d), such that q k / sqrt(d) is the scaled cosine."""
        q, k, v = super().split(tokens)
        scale = self.log_scale.clamp(max=math.log(LARGEST_SCALE)).exp() * self.head_dim**0.5
        of_q, of_k = (1 / torch.linalg.vector_norm(t, dim=-1, keepdim=True, dtype=scale.dtype).clamp(min=1e-6) for t in (q, k))
        return (q * (of_q * scale)).to(v.dtype), (k * of_k).to(v.dtype), v


class LogSpacedBias(nn.Module):
    """16 sigmoid(G_h(g(i - j))), a bias for windows of any size, trained with one of `window_size` places a side."""

    def __init__(self, num_heads: int, window_size: int):
        super().__init__()
        self.unit = 8 / max(window_size - 1, 1)
        self.mlp = nn.Sequential(nn.Linear(2, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, num_heads, bias=False))

    def bias(self, grid: tuple[int, int]) -> Tensor:
        """Scores (h, N, N) for a window of `grid` = (H, W)."""
        weight = self.mlp[0].weight
        axes = [self.unit * torch.arange(1 - side, side, device=weight.device, dtype=weight.dtype) for side in grid]
        rows, columns = (axis.sign() * (1 + axis.abs()).log2() / 3 for axis in axes)
        places = torch.stack([rows[:, None].expand(-1, len(columns)), columns.expand(len(rows), -1)], -1)
        table = 16 * self.mlp(places).sigmoid().permute(2, 0, 1)
        return table_scores(table, (grid, grid, (0, 0)))
