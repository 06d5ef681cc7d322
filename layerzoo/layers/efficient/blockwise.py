"""Blockwise self-attention: the sequence is cut into blocks, and each head attends from every block to one block."""

import torch
from torch import Tensor
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import HeadsLayer
from layerzoo.ops.attention import attend
from layerzoo.ops.sequence import real_first


class Blockwise(HeadsLayer):
    """Blockwise multi-head self-attention.

    **Paper**: Blockwise Self-Attention for Long Document Understanding, arXiv 1911.02972.

    y_i = W_o concat_h(sum_j softmax_j(q_i k_j / sqrt(d)) v_j), j over block (a + s_h) mod n, where a is the block of i and n the
    number of blocks. The first heads have s_h = 0, their own block; the num_shifted last ones take 1, 2, ..., n - 1 in turn.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same; a map is read row by row.

    **Cost**: time N b C + N C^2 for blocks of b tokens; memory N C.

    **Args**:
        dim: channels C.
        num_heads: h; None = one head per 32 channels.
        block_size: b, in tokens; 64, so that 14 x 14 tokens make four blocks (the paper makes two or three of 512 and 1024 tokens).
        num_shifted: heads that see another block than their own; None = a third of them, the paper's 4 of 12 with three blocks.
        qkv_bias: bias in q, k, v; on, as in the paper's BERT.

    **Raises**: ValueError for a block_size below 1, a num_shifted that is not between 0 and the heads, and num_heads that do not
    divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("blockwise", dim=64, block_size=16)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: the size of a block is given, not the number of blocks, so that the cost is linear in N (there
    N^2 / n); the last block may be shorter.
    """

    card = Card(
        title="Blockwise self-attention", paper="1911.02972", year=2019, survey="FP", cost=(1, 1),
        sizes={"tiny": {"dim": 8, "num_heads": 2, "block_size": 4, "num_shifted": 1}, "base": {"dim": 64, "num_heads": 4, "block_size": 16},
               "odd": {"dim": 15, "num_heads": 3, "block_size": 5, "num_shifted": 2, "qkv_bias": False}},
        limit={"equals": "mhsa", "options": {"block_size": 24, "num_shifted": 1}, "grid": (4, 6)},
        differs="the size of a block is given, not the number of blocks, so the cost is linear in N; the last block may be shorter")

    def __init__(
        self, dim: int, *, num_heads: int | None = None, block_size: int = 64, num_shifted: int | None = None, qkv_bias: bool = True,
    ):
        super().__init__(dim, num_heads, qkv_bias)
        if block_size < 1:
            raise bad_value("block_size", got=block_size, expected="a whole number of tokens in a block", do="Choose one such as 64.")
        num_shifted = self.num_heads // 3 if num_shifted is None else num_shifted
        if not 0 <= num_shifted <= self.num_heads:
            raise bad_value("num_shifted", got=num_shifted, expected=f"0 to {self.num_heads} of the heads", do="Leave it out for a third of the heads.")
        self.block_size, self.num_shifted = block_size, num_shifted

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        return real_first(lambda packed, real: self.merge(self.mix_heads(packed, real)), tokens, mask)

    def mix_heads(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Heads (B, h, N, d) of tokens (B, N, C) whose real ones come first."""
        batch, length, _ = tokens.shape
        size = min(self.block_size, length)
        q, k, v = (_cut(t, size) for t in self.split(tokens))
        real = torch.ones(batch, length, dtype=torch.bool, device=tokens.device) if mask is None else mask
        real = _cut(real[:, None, :, None], size)
        seen = self.seen_blocks(real.flatten(3).any(3).sum(2), q.shape[2])[..., None, None]
        k, v = k.gather(2, seen.expand_as(k)), v.gather(2, seen.expand_as(v))
        bias = None
        if mask is not None or length % size:
            visible = real.expand(-1, self.num_heads, -1, -1, -1).gather(2, seen.expand(-1, -1, -1, size, 1))
            bias = torch.where(visible, 0.0, float("-inf")).flatten(0, 1).mT
        y = attend(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), bias=bias)
        return y.unflatten(0, (batch, self.num_heads)).flatten(2, 3)[:, :, :length]

    def seen_blocks(self, count: Tensor, total: int) -> Tensor:
        """(B, h, total): the block that each block sees, of the count (B, 1) blocks with real tokens."""
        turn = torch.arange(self.num_heads, device=count.device) - (self.num_heads - self.num_shifted)
        shift = torch.where(turn < 0, 0, 1 + turn.clamp(min=0) % (count - 1).clamp(min=1))
        return (torch.arange(total, device=count.device) + shift[..., None]) % count[..., None]


def _cut(x: Tensor, size: int) -> Tensor:
    """(B, h, N, d), padded by zeros, in blocks (B, h, n, size, d)."""
    return F.pad(x, (0, 0, 0, -x.shape[2] % size)).unflatten(2, (-1, size))
