"""Pooling attention of MViTv2, where it pools its queries too: the block between two scales."""

from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.downsample.base import Downsample
from layerzoo.ffn.mlp import MLP
from layerzoo.layers.base import as_map, check_heads, check_odd, map_to_tokens
from layerzoo.ops.norms import create_norm
from layerzoo.ops.pooling_attention import PoolingAttention
from layerzoo.ops.token_maps import check_count


class MultiScalePooling(Downsample):
    """Multi-scale attention whose queries are every other place of every other row.

    **Paper**: MViTv2, arXiv 2112.01526.

    y = z + W_2 gelu(W_1 norm(z) + b_1) + b_2, z = maxpool(P n + b) + W_o concat_h(softmax_j(q_i k_j / sqrt(d) + q_i . R[row_i - row_j]
    + q_i . S[column_i - column_j]) v_j + q_i), n = norm(x). q, k and v are linear in n, then filtered, in each head alike, by a
    depthwise convolution, of stride 2 for q and s for k and v, and LayerNorm; maxpool takes the largest of 3x3 places, with stride 2. Where
    C_out is C, the shortcut is maxpool(x).

    **Shape**: (B, C, H, W) -> (B, C_out, ceil(H / 2), ceil(W / 2)).

    **Cost**: time N^2 (C_out / s^2 + h (H + W) / s^3) / 4 + N C_out (C + mlp_ratio C_out / 4), that is N^2.5 in the end; memory
    N C_out + N h (H + W) / (4 s).

    **Args**:
        dim: channels C.
        dim_out: channels C_out, also of the attention.
        stride: s of keys and values, in places; 2, between the paper's 2 and 1.
        kernel_size: of the convolutions, in places, odd; 3, the paper's.
        reach: offsets up to which R and S have rows of their own, in steps of places of queries or keys; 32, further ones count as 32.
        num_heads: h, which divides C_out; None = one head per 32 channels.
        mlp_ratio: hidden channels of the MLP over C_out; 4, the paper's.
        norm: "layer" (over channels), "batch", "group" or "none", or {"name": ..., "eps": ...}; layer, the paper's.

    **Raises**: ValueError for a dim or dim_out below 1, a stride or reach below 1, an even kernel_size, num_heads that do not divide
    dim_out, an mlp_ratio that leaves no hidden channel, an unknown norm, and for an input that is not (B, C, H, W).

    **Example**:
        >>> import torch
        >>> MultiScalePooling(64, 128)(torch.randn(2, 64, 7, 6)).shape
        torch.Size([2, 128, 4, 3])

    **Differs from the paper**: offsets beyond `reach` share a row; no class token.
    """

    card = Card(
        title="Pooling attention between scales (MViTv2)", paper="2112.01526", year=2021, cost=(2.5, 1.5), mask=False, needs_grid=True,
        sizes={"tiny": {"dim": 8, "dim_out": 16, "num_heads": 2}, "base": {"dim": 64, "dim_out": 128},
               "odd": {"dim": 9, "dim_out": 9, "stride": 3, "kernel_size": 5, "reach": 2, "num_heads": 3, "mlp_ratio": 1.5, "norm": "batch"}},
        differs="far offsets share a row, where the paper resizes the tables; no class token",
        cannot={"mask": "it is a unit of maps, and a map has no places to leave out"})

    def __init__(
        self, dim: int, dim_out: int, *, stride: int = 2, kernel_size: int = 3, reach: int = 32, num_heads: int | None = None,
        mlp_ratio: float = 4.0, norm: str | dict = "layer",
    ):
        super().__init__(dim, dim_out)
        check_count("stride", stride)
        check_odd("kernel_size", kernel_size)
        check_count("reach", reach)
        self.num_heads = check_heads(dim_out, num_heads)
        self.norm = create_norm(norm, dim)
        self.shortcut = nn.Linear(dim, dim_out) if dim != dim_out else None
        self.qkv = nn.Linear(dim, 3 * dim_out)
        self.attention = PoolingAttention(dim_out // self.num_heads, kernel_size, 2, stride, reach, True)
        self.proj = nn.Linear(dim_out, dim_out)
        self.ffn_norm = create_norm(norm, dim_out)
        self.ffn = MLP(dim_out, mlp_ratio=mlp_ratio)

    def reduce(self, x: Tensor) -> Tensor:
        grid = x.shape[2:]
        tokens = map_to_tokens(self.norm(x))
        q, k, v = self.qkv(tokens).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        y = self.proj(self.attention(q, k, v, grid).transpose(1, 2).flatten(2))
        kept = x if self.shortcut is None else as_map(self.shortcut(tokens), grid)
        z = F.max_pool2d(kept, 3, 2, 1) + as_map(y, self.out_grid(grid))
        return z + self.ffn(self.ffn_norm(z))
