"""The attention of CvT: queries, keys and values are depthwise convolutions of the map before they are linear."""

from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import HeadsLayer, as_map, check_odd, map_to_tokens
from layerzoo.ops.attention import attend
from layerzoo.ops.reduction import parts, project, seen_cells


class CvTAttention(HeadsLayer):
    """Self-attention with convolutional projection.

    **Paper**: CvT, arXiv 2103.15808.

    y_i = W_o concat_h(sum_p softmax_p(q_i k_p / sqrt(d)) v_p), q = W_q D_q(x), k = W_k D_k(x), v = W_v D_v(x), D depthwise convolutions of
    K x K, those of k and v with stride s: p is over every s-th row and column.

    **Shape**: (B, C, H, W) or (B, N, C) with `grid=` -> the same, any H and W.

    **Cost**: time N^2 C / s^2 + N C^2; memory N C.

    **Args**:
        dim: channels C.
        num_heads: h; None = one head per 32 channels.
        kernel_size: K in positions, odd; 3, the paper's.
        stride: s of keys and values in positions; 2, the paper's.
        qkv_bias: bias in q, k, v; on, as in the paper's code.

    **Raises**: ValueError for an even kernel_size, a stride below 1 and num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("cvt_attention", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: no batch norm after a depthwise convolution, since the block normalises before the layer. With a mask, a
    key counts that has a real token among the s x s places from its own on.
    """

    card = Card(
        title="Convolutional projection attention of CvT", paper="2103.15808", year=2021, cost=(2, 1), needs_grid=True,
        sizes={"tiny": {"dim": 8, "num_heads": 2}, "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 15, "num_heads": 3, "kernel_size": 5, "stride": 3, "qkv_bias": False}},
        limit={"equals": "mhsa", "options": {"kernel_size": 1, "stride": 1}, "grid": (4, 6),
               "set": {"local.0.weight": "ones", "local.1.weight": "ones", "local.2.weight": "ones"}},
        differs="no batch norm after a depthwise convolution, since the block normalises before the layer")

    def __init__(
        self, dim: int, *, num_heads: int | None = None, kernel_size: int = 3, stride: int = 2, qkv_bias: bool = True,
    ):
        super().__init__(dim, num_heads, qkv_bias)
        check_odd("kernel_size", kernel_size)
        if stride < 1:
            raise bad_value("stride", got=stride, expected="a whole number of positions >= 1", do="Choose 1 to keep every key.")
        self.stride = stride
        self.local = nn.ModuleList(
            nn.Conv2d(dim, dim, kernel_size, stride=s, padding=kernel_size // 2, groups=dim, bias=False) for s in (1, stride, stride))

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        x = as_map(tokens, grid)
        places = (map_to_tokens(conv(x)) for conv in self.local)
        q, k, v = (project(p, part, self.num_heads)[0] for p, part in zip(places, parts(self.qkv, (1, 1, 1))))
        return self.merge(attend(q, k, v, seen_cells(mask, grid, self.stride)))
