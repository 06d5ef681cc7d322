"""Exact self-attention in chunks, so that no N x N weights are ever made."""

import math

from torch import Tensor

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import HeadsLayer
from layerzoo.ops.chunked_attention import chunked_attention
from layerzoo.ops.linear_recurrence import full_precision, no_autocast


class ChunkedExact(HeadsLayer):
    """Softmax attention by running sums over chunks of keys.

    **Paper**: Self-attention Does Not Need O(n^2) Memory, arXiv 2112.05682.

    For each chunk of queries, over the chunks of keys: m' = max(m, max_j s_j), S' = S e^(m - m') + sum_j e^(s_j - m') v_j and
    Z' = Z e^(m - m') + sum_j e^(s_j - m'), s = q k / sqrt(d); then y = W_o concat_h(S / Z). The gradient makes each chunk's weights again
    from q, k and m + log Z. mhsa computes the same by a fused kernel where torch has one, and faster: this layer is the algorithm in plain
    operations, for devices and options without such a kernel (where torch makes all N x N weights), and for reading.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same.

    **Cost**: time N^2 C, half of it with causal; memory N C, and beside q, k, v and y sqrt(N) for each head and sample.

    **Args**:
        dim: channels C.
        num_heads: h; None = one head per 32 channels.
        query_chunk_size: queries taken at once; 256 (the paper's 1024 are for one sample on an accelerator).
        key_chunk_size: keys taken at once; None = 8 sqrt(N), the paper's order with fewer and larger products.
        qkv_bias: bias in q, k, v; on, as in ViT.
        causal: position i sees positions up to i, in row-major order.

    **Raises**: ValueError for chunk sizes below 1 and num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("chunked_exact", dim=64, key_chunk_size=16)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: the gradient keeps m + log Z and so runs no chunk's forward pass again; samples and heads of a chunk are
    computed together.
    """

    card = Card(
        title="Memory-efficient exact attention", paper="2112.05682", year=2021, cost=(2, 1), causal=True, symmetry="permutation",
        sizes={"tiny": {"dim": 32, "num_heads": 1, "query_chunk_size": 512}, "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 15, "num_heads": 3, "query_chunk_size": 16, "key_chunk_size": 12, "qkv_bias": False}},
        limit={"equals": "mhsa", "options": {"query_chunk_size": 7, "key_chunk_size": 5}, "grid": (4, 6)},
        differs="the gradient keeps the log of each normaliser; samples and heads of a chunk are computed together")

    def __init__(
        self, dim: int, *, num_heads: int | None = None, query_chunk_size: int = 256, key_chunk_size: int | None = None,
        qkv_bias: bool = True, causal: bool = False,
    ):
        super().__init__(dim, num_heads, qkv_bias)
        for what, given in (("query_chunk_size", query_chunk_size), ("key_chunk_size", key_chunk_size)):
            if given is not None and given < 1:
                do = "Leave it out for 256 queries and 8 sqrt(N) keys."
                raise bad_value(what, got=given, expected="a whole number of tokens >= 1", do=do)
        self.query_chunk_size, self.key_chunk_size, self.causal = query_chunk_size, key_chunk_size, causal

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        key_chunk = self.key_chunk_size or 8 * math.ceil(tokens.shape[1] ** 0.5)
        heads = full_precision(*self.split(tokens))
        with no_autocast(tokens.device):
            y = chunked_attention(*heads, mask, self.causal, self.query_chunk_size, key_chunk)
        return self.merge(y.to(tokens.dtype))
