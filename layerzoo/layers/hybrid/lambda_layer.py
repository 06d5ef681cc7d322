"""The lambda layer: the context becomes a linear function of the query, one part from its contents and one from its places."""

import torch
from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import TokenLayer, check_heads, check_odd


class LambdaLayer(TokenLayer):
    """Lambda layer with local context for positions.

    **Paper**: LambdaNetworks, arXiv 2102.08602.

    y_i = concat_h((L + L_i)^T q_i,h), L = sum_u sum_j softmax_j(k_j,u) v_j,u^T the content lambda, which all positions share, and
    L_i = sum_u sum_o E[o, u] v_{i+o},u^T the position lambda, o over offsets in a square of r x r. The heads have queries of their own and
    share both lambdas, of d_k x C / h. No pair of positions is ever weighed.

    **Shape**: (B, C, H, W) or (B, N, C) with `grid=` -> the same, any H and W.

    **Cost**: time N C d_k (u r^2 / h + 1) + N C (h + u) d_k; memory N C d_k / h, for the position lambdas.

    **Args**:
        dim: channels C.
        num_heads: h; None = one head per 32 channels.
        key_dim: d_k, channels of a query and of a key; 16, the paper's.
        kernel_size: r in positions, odd; 9, as in public code: the paper's 23 are for maps of 224 / 4 rows.
        intra_depth: u, keys and values for each position; 1, the paper's for large models.
        qkv_bias: bias in q, k, v; off, the paper's.

    **Raises**: ValueError for an even kernel_size, key_dim or intra_depth below 1, and num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("lambda_layer", dim=64, kernel_size=5)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: no batch norm of queries and values, since the block normalises before the layer.
    """

    card = Card(
        title="Lambda layer", paper="2102.08602", year=2021, cost=(1, 1), needs_grid=True, symmetry="translation",
        sizes={"tiny": {"dim": 8, "num_heads": 2, "key_dim": 3, "kernel_size": 3}, "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 15, "num_heads": 3, "key_dim": 4, "kernel_size": 5, "intra_depth": 2, "qkv_bias": True}},
        differs="no batch norm of queries and values, since the block normalises before the layer")

    def __init__(
        self, dim: int, *, num_heads: int | None = None, key_dim: int = 16, kernel_size: int = 9, intra_depth: int = 1,
        qkv_bias: bool = False,
    ):
        super().__init__(dim)
        self.num_heads = check_heads(dim, num_heads)
        check_odd("kernel_size", kernel_size)
        if min(key_dim, intra_depth) < 1:
            got, expected = f"{key_dim} and {intra_depth}", "two whole numbers >= 1"
            raise bad_value("key_dim and intra_depth", got=got, expected=expected, do="The paper's are 16 and 1.")
        self.intra_depth = intra_depth
        self.widths = self.num_heads * key_dim, intra_depth * key_dim, intra_depth * (dim // self.num_heads)
        self.qkv = nn.Linear(dim, sum(self.widths), bias=qkv_bias)
        self.offsets = nn.Conv2d(intra_depth, key_dim, kernel_size, padding=kernel_size // 2, bias=False)  # E
        nn.init.trunc_normal_(self.qkv.weight, std=dim**-0.5)
        with torch.no_grad():
            self.qkv.weight[: self.widths[0]] *= key_dim**-0.5  # the scale that scores of attention have

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(tokens).split(self.widths, 2)
        if mask is not None:
            k = k.masked_fill(~mask.unsqueeze(-1), torch.finfo(k.dtype).min)
            v = v * mask.unsqueeze(-1)
        q = q.unflatten(2, (self.num_heads, -1))
        k, v = (t.unflatten(2, (self.intra_depth, -1)) for t in (k.softmax(1), v))
        content = k.flatten(1, 2).mT @ v.flatten(1, 2)  # (B, d_k, C / h)
        maps = v.permute(0, 3, 2, 1).flatten(0, 1).unflatten(2, grid)
        position = self.offsets(maps).flatten(2).unflatten(0, (len(v), -1)).permute(0, 3, 2, 1)  # (B, N, d_k, C / h)
        y = (q.flatten(1, 2) @ content).unflatten(1, q.shape[1:3])
        return (y + q @ position.contiguous()).flatten(2)  # many small products, which are slow on other strides
