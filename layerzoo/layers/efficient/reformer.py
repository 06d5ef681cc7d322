"""Reformer: tokens are hashed into buckets, sorted by them, and attend to the tokens of their bucket nearby."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import TokenLayer, check_heads
from layerzoo.ops.clusters import LAST, closeness, project_precisely, rows, sort_by_label

BITS, LEVELS = 6, 3  # a hash takes up to 32 axes, which make 64 buckets; three of them one after the other are enough for any length
ALONE, EPS = -1e4, 1e-6  # a token's score of itself, below all others; the least length of a query


class Reformer(TokenLayer):
    """Attention by locality-sensitive hashing (LSH), with queries that are keys too.

    **Paper**: Reformer, arXiv 2001.04451.

    y_i = W_o concat_h(sum_r sum_j exp(s_ij - z_i) v_j), s_ij = q_i k_j / sqrt(d), k_j = q_j / |q_j|, s_ii lower than all others,
    exp(z_i) = sum_r sum_j exp(s_ij), over rounds r and the keys j with b_r(j) = b_r(i) in the chunk of i or the one before it, where
    tokens are sorted by (b_r, position) and cut into chunks of m.

    b(x) is the axis of x R nearest to x, with its sign, R Gaussian. There are n buckets, the largest power of two up to 2 N / m: the
    first n / 2 columns of R, and beyond 64 a second and a third R for the next digits, so one `rotations` serves any N.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same; positions are row by row.

    **Cost**: time r N C (m + log N) + N C^2 with a sort of N log N; memory r N (C + h m). Causal: the same.

    **Args**:
        dim: channels C.
        num_heads: h; None = one head per 32 channels.
        chunk_size: m, in tokens, about two buckets; 64, so that 14 x 14 tokens have four buckets.
        num_hashes: rounds r; 4; the paper comes near full attention at 8, at twice the cost.
        qkv_bias: bias in q and v; on, as in ViT.
        causal: position i sees itself if alone, else up to m positions of its bucket before it, in row-major order.

    **Raises**: ValueError for chunk_size and num_hashes below 1, and num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("reformer", dim=64, chunk_size=16)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: R is drawn once, not for every batch; a key met in several rounds counts in each. With causal a
    query sees the m tokens before it: a chunk's borders depend on the future. Reversible residuals are the model's.
    """

    card = Card(
        title="LSH attention (Reformer)", paper="2001.04451", year=2020, survey="LP", cost=(1, 1), causal=True,
        sizes={"tiny": {"dim": 8, "num_heads": 2, "chunk_size": 4, "num_hashes": 2}, "base": {"dim": 64, "num_heads": 4, "chunk_size": 32},
               "odd": {"dim": 15, "num_heads": 3, "chunk_size": 5, "num_hashes": 3, "qkv_bias": False}},
        differs="hashes are drawn once; a key met in several rounds counts in each; causal windows are the m tokens before; buckets follow N")

    def __init__(
        self, dim: int, *, num_heads: int | None = None, chunk_size: int = 64, num_hashes: int = 4, qkv_bias: bool = True,
        causal: bool = False,
    ):
        super().__init__(dim)
        for name, value in (("chunk_size", chunk_size), ("num_hashes", num_hashes)):
            if value < 1:
                raise bad_value(name, got=value, expected="a whole number >= 1", do="Choose chunks such as 64 and 4 or 8 hashes.")
        self.num_heads, self.chunk_size, self.causal = check_heads(dim, num_heads), chunk_size, causal
        self.head_dim = dim // self.num_heads
        self.qv = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.register_buffer("rotations", torch.randn(LEVELS, self.head_dim, num_hashes, 2**BITS // 2))
        self.proj = nn.Linear(dim, dim)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        q, v = (t.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2) for t in project_precisely(tokens, self.qv, self.dim))
        y = self.mix_sorted(q.to(v.dtype), v, *sort_by_label(self.buckets(q, mask), min(self.chunk_size, tokens.shape[1])))
        return self.proj(y.transpose(1, 2).flatten(2))

    @torch.no_grad()
    def buckets(self, q: Tensor, mask: Tensor | None) -> Tensor:
        """(B, h, r, N): the bucket of each token in each round; as many buckets as the real tokens need."""
        sizes = [self.chunk_size * 2**b for b in range(1, BITS * LEVELS + 1)]
        length = q.new_full((len(q), 1), q.shape[2], dtype=torch.long) if mask is None else mask.sum(1, keepdim=True)
        bits = (2 * length >= torch.tensor(sizes, device=q.device)).sum(1)
        most = sum(2 * q.shape[2] >= size for size in sizes)
        labels = torch.zeros(*q.shape[:3], self.rotations.shape[2], dtype=torch.long, device=q.device)
        for level in range(-(-most // BITS)):
            digits, axes = (bits - BITS * level).clamp(0, BITS), 2 ** min(BITS, most - BITS * level) // 2
            used = torch.arange(axes, device=q.device) < 2 ** digits[:, None] // 2
            rotation = (self.rotations[level, ..., :axes] * used[:, None, None]).flatten(2)  # (B, d, r * axes), 0 where not used
            turned = closeness(q, rotation.mT[:, None]).unflatten(3, (-1, axes))
            axis = turned.abs().argmax(-1, keepdim=True)
            digit = torch.where(digits[:, None, None, None] > 0, (2 * axis + (turned.gather(-1, axis) < 0)).squeeze(-1), 0)
            labels = labels * 2**BITS + digit
        return labels.mT if mask is None else labels.mT.masked_fill(~mask[:, None, None], LAST)

    def mix_sorted(self, q: Tensor, v: Tensor, labels: Tensor, order: Tensor, place: Tensor) -> Tensor:
        """Heads (B, h, N, d), from labels (B, h, r, chunks, m), order and place (B, h, r, L): one softmax over all rounds."""
        length, size, width = q.norm(dim=-1, keepdim=True).clamp(min=EPS), labels.shape[-1], self.head_dim
        packed = torch.cat([q / length, v, torch.ones_like(length), length * width**-0.5], -1)
        keys, values, scale = rows(packed, order).view(-1, size, 2 * width + 2).split((width, width + 1, 1), -1)
        queries, (own, back) = keys * scale, self.unseen(labels)
        own, alone = (queries @ keys.mT).masked_fill_(own, float("-inf")), torch.eye(size, dtype=torch.bool, device=q.device)
        own = own.masked_fill_(alone, ALONE)
        back = (queries[1:] @ keys[:-1].mT).masked_fill_(back[1:], float("-inf"))  # scores in the chunk before
        highest = own.detach().amax(-1)
        highest[1:] = highest[1:].maximum(back.detach().amax(-1))
        highest = highest.view_as(order).gather(3, place).amax(2, keepdim=True).expand_as(order)  # over all rounds
        highest = highest.gather(3, order).view(-1, size, 1)
        sums = own.sub_(highest).exp_() @ values
        sums[1:] += back.sub_(highest[1:]).exp_() @ values[:-1]
        rounds = torch.arange(order.shape[2], device=q.device)[:, None] * order.shape[3]
        sums = rows(sums.view(*q.shape[:2], -1, width + 1), place[..., : q.shape[2]] + rounds).sum(2)
        return sums[..., :-1] / sums[..., -1:]  # the last column sums the weights

    def unseen(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Which keys of its chunk, and of the chunk before, a query does not see: twice (B h r chunks, m, m)."""
        label, before = labels.unsqueeze(-1), F.pad(labels[..., :-1, :], (0, 0, 1, 0), value=-1)
        own, back = label != labels.unsqueeze(-2), label != before.unsqueeze(-2)
        if self.causal:  # the m before a query
            later = torch.ones(labels.shape[-1], labels.shape[-1], dtype=torch.bool, device=labels.device).triu(1)
            own, back = own | later, back | later.mT
        return own.flatten(0, 3), back.flatten(0, 3)
