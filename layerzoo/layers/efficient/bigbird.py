"""BigBird: blocks of tokens see the blocks beside them, a few random ones, and the first and the last."""

import torch
from torch import Tensor
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import HeadsLayer
from layerzoo.ops.attention import attend
from layerzoo.ops.sequence import real_first, take

PLANS = 256  # rows of random numbers: query block i takes row i mod 256


class BigBird(HeadsLayer):
    """Block-sparse attention, internal transformer construction.

    **Paper**: Big Bird, arXiv 2007.14062.

    y_i = W_o concat_h(sum_j softmax_j(q_i k_j / sqrt(d)) v_j), j over the blocks {0, n - 1, a - 1, a, a + 1} and r random other
    ones, where a is the block of i and n the number of blocks; queries of the blocks 0 and n - 1 see all tokens.

    The random blocks of a are drawn without repetition, for each head, by integers in the buffer `draws`: the plan stays the same
    for the life of the layer, and any length has one.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same; a map is read row by row.

    **Cost**: time N C b (r + 7) + N C^2 for blocks of b tokens; memory N C (r + 5). Not causal: the first block sees all.

    **Args**:
        dim: channels C.
        num_heads: h; None = one head per 32 channels.
        block_size: b, in tokens; 16, the paper's code.
        num_random: r, random blocks for each block and head; 3, the paper's.
        qkv_bias: bias in q, k, v; on, as in the paper's code.

    **Raises**: ValueError for a block_size below 1, a num_random below 0, and num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("bigbird", dim=64, block_size=4)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: the last block may be shorter; a block that is in two of the sets counts once, also at the ends.
    """

    card = Card(
        title="BigBird attention", paper="2007.14062", year=2020, survey="FP+M", cost=(1, 1),
        sizes={"tiny": {"dim": 8, "num_heads": 2, "block_size": 2, "num_random": 2}, "base": {"dim": 64, "num_heads": 4, "block_size": 4},
               "odd": {"dim": 15, "num_heads": 3, "block_size": 3, "num_random": 1, "qkv_bias": False}},
        limit={"equals": "mhsa", "options": {"block_size": 5, "num_random": 1}, "grid": (4, 6)},
        differs="the last block may be shorter; a block that is in two of the sets counts once")

    def __init__(self, dim: int, *, num_heads: int | None = None, block_size: int = 16, num_random: int = 3, qkv_bias: bool = True):
        super().__init__(dim, num_heads, qkv_bias)
        if block_size < 1:
            raise bad_value("block_size", got=block_size, expected="a whole number >= 1 of tokens", do="The paper's code has 16.")
        if num_random < 0:
            raise bad_value("num_random", got=num_random, expected="a whole number >= 0 of random blocks", do="The paper has 3.")
        self.block_size, self.num_random = block_size, num_random
        self.register_buffer("draws", torch.randint(2**31, (self.num_heads, PLANS, num_random)))

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        return real_first(lambda packed, real: self.merge(self.mix_heads(packed, real)), tokens, mask)

    def mix_heads(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Heads (B, h, N, d) of tokens (B, N, C) whose real ones come first."""
        length, size = tokens.shape[1], min(self.block_size, tokens.shape[1])
        real = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else mask
        q, k, v = (F.pad(t, (0, 0, 0, -length % size)) for t in self.split(tokens))
        real = F.pad(real, (0, -length % size))
        last = (real.sum(1) - 1) // size  # (B,), the number of the last block with a real token
        ends = torch.stack([torch.zeros_like(last), last], 1)[..., None] * size + torch.arange(size, device=q.device)  # (B, 2, b)
        full = attend(take(q, ends.flatten(1)), k, v, real)
        y = torch.cat([full, self.mix_sparse(q, k, v, real, last, size)], 2)
        token = torch.arange(length, device=q.device)
        middle = torch.where(token // size == last[:, None], token % size + size, token + 2 * size)
        return take(y, torch.where(token < size, token, middle))

    def mix_sparse(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor, last: Tensor, size: int) -> Tensor:
        """Queries of each block over the keys of the blocks it sees; blocks are folded into the second axis, heads into the batch."""
        q, k, v = (t.unflatten(2, (-1, size)) for t in (q, k, v))
        seen, valid = self.seen_blocks(last[:, None, None], q.shape[2])
        visible = real.unflatten(1, (-1, size))[:, None].expand(-1, q.shape[1], -1, -1).gather(2, seen.flatten(2)[..., None].expand(-1, -1, -1, size))
        visible = visible.unflatten(2, seen.shape[2:]) & valid[..., None]
        k, v = (t.gather(2, seen.flatten(2)[..., None, None].expand(-1, -1, -1, *t.shape[3:])) for t in (k, v))
        k, v = (t.unflatten(2, seen.shape[2:]).flatten(3, 4).flatten(0, 1) for t in (k, v))
        bias = torch.where(visible, 0.0, float("-inf")).flatten(3).flatten(0, 1).unsqueeze(2)
        return attend(q.flatten(0, 1), k, v, bias=bias).unflatten(0, q.shape[:2]).flatten(2, 3)

    def seen_blocks(self, last: Tensor, total: int) -> tuple[Tensor, Tensor]:
        """Numbers of the blocks that each block sees, and which of them count, both (B, h, total, 5 + r); `last` is (B, 1, 1)."""
        block, shape = torch.arange(total, device=last.device), (len(last), self.num_heads, total)
        low, high = (block - 1).clamp(min=1), torch.minimum(block + 1, last - 1)  # the window, without the first and the last block
        free = torch.where(block < last, last - 2 - high + low, 0)  # number of blocks outside of the window, the first and the last
        draws, picked = self.draws[:, block % PLANS], last.new_zeros(*shape, 0)
        for t in range(self.num_random):
            rank = draws[..., t] % (free - t).clamp(min=1)  # among those not yet picked, which stand in ascending order
            for s in range(t):
                rank = rank + (rank >= picked[..., s])
            picked = torch.cat([picked, torch.where(free > t, rank, total)[..., None]], -1).sort(-1).values
        random = 1 + picked + (1 + picked >= low[:, None]) * (high - low + 1)[..., None]
        window = block[:, None] + torch.arange(-1, 2, device=last.device)
        inside = (window > 0) & (window < last[..., None])
        ends, two = torch.stack([torch.zeros_like(last), last], -1), torch.stack([last >= 0, last > 0], -1)
        seen = torch.cat([ends.expand(*shape, -1), window.expand(*shape, -1), random], -1)
        valid = torch.cat([two.expand(*shape, -1), inside.expand(*shape, -1), picked < free[..., None]], -1)
        return torch.where(valid, seen, 0), valid
