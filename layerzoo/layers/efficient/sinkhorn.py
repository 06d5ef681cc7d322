"""Sparse Sinkhorn attention: blocks attend to themselves and to one block of a soft, learned sort of all blocks."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import HeadsLayer
from layerzoo.ops.attention import attend
from layerzoo.ops.linear_recurrence import full_precision
from layerzoo.ops.sequence import real_first
from layerzoo.ops.sinkhorn import gumbel_like, sinkhorn, visible_keys, with_sorted


class Sinkhorn(HeadsLayer):
    """Local attention over own and sorted blocks.

    **Paper**: Sparse Sinkhorn Attention, arXiv 2002.11296.

    y = W_o concat_h(softmax(q_i [K_i; K'_i]^T / sqrt(d)) [V_i; V'_i]) for block i, with K'_i = sum_j P_ij K_j, V'_i = sum_j P_ij V_j and
    P = Sinkhorn((R + gumbel) / t), R_ij = F(x'_i) . k'_j / sqrt(d): x'_i is the mean token of block i, k'_j the mean key of block j, F a
    two-layer ReLU network, and Sinkhorn divides columns, then rows, by their sums. Gumbel noise is for training alone. With
    num_sorted_blocks = m (SortCut) all queries attend to [K'_1; ...; K'_m] instead.

    With causal, x'_i is the mean of the tokens up to the first of block i, P_ij is 0 for j >= i, and P_ij is divided by the sum of the
    column down to row i alone. Many iterations would leave the block before i alone.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same; a map is read row by row.

    **Cost**: time N b C + N^2 C / b + N C^2 for blocks of b tokens, where N^2 / b is for K' and V', SortCut's m N C; memory N C and
    h N^2 / b^2 for each iteration.

    **Args**:
        dim: channels C.
        num_heads: h; None = one head per 32 channels.
        block_size: b, in tokens; 64, so that 14 x 14 tokens make four blocks.
        num_iterations: divisions of columns and rows; 7, after which columns sum to one within a tenth.
        temperature: t; 0.75, the paper's. Lower makes P more like a permutation.
        num_sorted_blocks: m, for SortCut; None = own and sorted block.
        qkv_bias: bias in q, k, v; on, as in ViT.
        causal: position i sees positions up to i, in row-major order.

    **Raises**: ValueError for a block_size, num_iterations or num_sorted_blocks below 1, a temperature that is not above 0,
    num_sorted_blocks with causal, and num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("sinkhorn", dim=64, block_size=16)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: there F gives a score for each of a fixed number of blocks; here the product with the block's mean key does,
    so any length runs. Blocks are averaged, not summed. Rows are divided last, so that sorted blocks are means. Zeros fill a last block.
    """

    card = Card(
        title="Sparse Sinkhorn attention", paper="2002.11296", year=2020, survey="LP", cost=(2, 2), causal=True,
        sizes={"tiny": {"dim": 8, "num_heads": 2, "block_size": 4, "num_iterations": 3}, "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 15, "num_heads": 3, "block_size": 5, "temperature": 0.3, "qkv_bias": False}},
        limit={"equals": "mhsa", "options": {"block_size": 24}, "grid": (4, 6)},  # the sorted copy of the only block doubles every key
        differs="the score of a block is a product with its mean key, so any length runs; blocks are averaged; rows are divided last")

    def __init__(
        self, dim: int, *, num_heads: int | None = None, block_size: int = 64, num_iterations: int = 7, temperature: float = 0.75,
        num_sorted_blocks: int | None = None, qkv_bias: bool = True, causal: bool = False,
    ):
        super().__init__(dim, num_heads, qkv_bias)
        for what, got in (("block_size", block_size), ("num_iterations", num_iterations), ("num_sorted_blocks", num_sorted_blocks)):
            if got is not None and got < 1:
                raise bad_value(what, got=got, expected="a whole number >= 1", do="Leave it out for the default.")
        if not temperature > 0:
            raise bad_value("temperature", got=temperature, expected="a number > 0", do="The paper's is 0.75.")
        if causal and num_sorted_blocks is not None:
            raise bad_value("num_sorted_blocks", got=num_sorted_blocks, expected="None with causal", do="SortCut shows queries the future.")
        self.block_size, self.num_iterations, self.temperature = block_size, num_iterations, temperature
        self.num_sorted_blocks, self.causal = num_sorted_blocks, causal
        self.sort_net = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        return real_first(self.mix_packed, tokens, mask)

    def mix_packed(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Tokens (B, N, C) whose real ones come first."""
        batch, length, _ = tokens.shape
        size = min(self.block_size, length)
        added = -length % size
        real = torch.ones_like(tokens[..., 0], dtype=torch.bool) if mask is None else mask
        if added:
            tokens, real = F.pad(tokens, (0, 0, 0, added)), F.pad(real, (0, added))
        blocks, real = tokens.unflatten(1, (-1, size)), real.unflatten(1, (-1, size))
        parts = self.dim, 2 * self.dim  # projected apart: queries are kept for the gradient, keys and values only beside their sorted ones
        biases = (None, None) if self.qkv.bias is None else self.qkv.bias.split(parts)
        q, kv = (F.linear(blocks, w, b) for w, b in zip(self.qkv.weight.split(parts), biases))
        q, k, v = (t.unflatten(3, (self.num_heads, -1)) for t in (q, *kv.chunk(2, 3)))  # (B, n, b, h, d)
        order = self.sort(blocks, k.mean(2), real[:, :, 0])[:, :, : self.num_sorted_blocks].to(k.dtype)
        partial = mask is not None or added > 0
        if self.num_sorted_blocks is None:
            k, v = (with_sorted(order, t).flatten(0, 1) for t in (k, v))
            bias = torch.where(visible_keys(real, self.causal), 0.0, float("-inf")) if partial or self.causal else None
            y = attend(q.flatten(0, 1).transpose(1, 2), k, v, bias=bias)
        else:
            k, v = ((order @ t.permute(0, 3, 1, 2, 4).flatten(3)).unflatten(3, (size, -1)).flatten(2, 3) for t in (k, v))
            seen = (real[:, : self.num_sorted_blocks, :1] & real[:, :1]).flatten(1) if partial else None
            y = attend(q.flatten(1, 2).transpose(1, 2), k, v, seen)
        y = y.transpose(1, 2).reshape(batch, -1, self.dim)
        return self.proj(y[:, :length] if added else y)

    def sort(self, blocks: Tensor, keys: Tensor, real: Tensor) -> Tensor:
        """P (B, h, n, n), from blocks of tokens (B, n, b, C), their mean keys (B, n, h, d) and which have real tokens (B, n)."""
        mean = blocks.mean(2)
        if self.causal:
            before = F.pad(blocks.sum(2)[:, :-1], (0, 0, 1, 0)).cumsum(1)
            count = torch.arange(blocks.shape[1], device=mean.device) * blocks.shape[2] + 1
            mean = (before + blocks[:, :, 0]) / count.to(mean.dtype).unsqueeze(-1)
        wanted = self.sort_net(mean).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        (scores,) = full_precision(wanted @ keys.permute(0, 2, 3, 1) * self.head_dim**-0.5)
        if self.training:
            scores = scores + gumbel_like(scores)
        visible = real[:, None, :, None] & real[:, None, None, :]
        return sinkhorn(scores / self.temperature, visible.tril(-1) if self.causal else visible, self.num_iterations, self.causal)
