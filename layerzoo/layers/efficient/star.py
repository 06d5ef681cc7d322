"""Star-Transformer: every position sees its two neighbours on a ring and a hub that sees all."""

import torch
from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import TokenLayer, check_heads
from layerzoo.ops.attention import attend
from layerzoo.ops.sequence import real_first


class Star(TokenLayer):
    """Cycles of ring attention of the satellites h_i and of attention of the hub s.

    **Paper**: Star-Transformer, arXiv 1902.09113.

    h_i <- A(h_i, [h_{i-1}; h_i; h_{i+1}; x_i; s]), then s <- A(s, [s; h_1; ...; h_N]), from h_i = x_i and s = mean_i x_i on, with
    A(q, c) = LN(relu(W_o concat_h(softmax(q_h k_h^T / sqrt(d)) v_h))), k and v linear in c, other weights in each step. The first and
    the last position are neighbours. y_i is h_i after the last cycle.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same; a map is read row by row.

    **Cost**: time T N C^2 and memory T N C for T cycles.

    **Args**:
        dim: channels C.
        num_heads: h; None = one head per 32 channels.
        depth: T, cycles; 2, the fewest in which the hub attends (the paper's whole model is one such layer, and T its depth).
        qkv_bias: bias in queries, keys and values; on, as in the authors' code.

    **Raises**: ValueError for a depth below 1 and num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("star", dim=64, depth=3)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: the hub does not attend after the last cycle, since only the satellites are put out.
    """

    card = Card(
        title="Star-Transformer", paper="1902.09113", year=2019, survey="M", cost=(1, 1),
        sizes={"tiny": {"dim": 8, "num_heads": 2}, "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 15, "num_heads": 3, "depth": 3, "qkv_bias": False}},
        differs="the hub does not attend after the last cycle, since only the satellites are put out")

    def __init__(self, dim: int, *, num_heads: int | None = None, depth: int = 2, qkv_bias: bool = True):
        super().__init__(dim)
        self.num_heads = check_heads(dim, num_heads)
        if depth < 1:
            raise bad_value("depth", got=depth, expected="a whole number >= 1 of cycles", do="Choose 2, or more to see further around.")
        self.rings = nn.ModuleList(_Attention(dim, self.num_heads, qkv_bias) for _ in range(depth))
        self.hubs = nn.ModuleList(_Attention(dim, self.num_heads, qkv_bias) for _ in range(depth - 1))

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        return real_first(self.mix_star, tokens, mask)

    def mix_star(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Satellites (B, N, C) of tokens (B, N, C) whose real ones come first and whose other ones are zero."""
        count = tokens.shape[1] if mask is None else mask.sum(1)[:, None, None]
        real = None if mask is None else torch.cat([mask[:, :1], mask], 1)  # the hub, which is, and the satellites
        satellites, hub = tokens, tokens.sum(1, keepdim=True) / count
        for cycle, ring in enumerate(self.rings):
            if cycle:
                hub = self.hubs[cycle - 1].see_all(hub, torch.cat([hub, satellites], 1), real)
            context = [_closed(satellites, mask), hub] + [tokens] * (cycle > 0)  # at first the satellites are the input
            satellites = ring.see_ring(satellites, torch.cat(context, 1))
        return satellites


class _Attention(nn.Module):
    """A(q, c), of one query or of the queries on the ring."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool):
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key_value = nn.Linear(dim, dim, bias=qkv_bias), nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.proj, self.norm = nn.Linear(dim, dim), nn.LayerNorm(dim)

    def see_all(self, queries: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """Queries (B, n, C) over a context (B, m, C)."""
        q, k, v = (t.transpose(1, 2) for t in self.split(queries, context))
        return self.merge(attend(q, k, v, mask).transpose(1, 2))

    def see_ring(self, queries: Tensor, context: Tensor) -> Tensor:
        """Queries (B, N, C) over five rows each of the closed ring (N + 2), the hub (1) and the input (N), if that is not the ring."""
        q, k, v = self.split(queries, context)
        length = q.shape[1]
        own = 1 if context.shape[1] == length + 3 else length + 3
        seen = [slice(start, start + length) for start in (0, 1, 2, own)] + [slice(length + 2, length + 3)]
        scores = torch.stack([(q * k[:, rows]).sum(-1) for rows in seen], -1) * q.shape[-1] ** -0.5
        return self.merge(sum(w.unsqueeze(-1) * v[:, rows] for w, rows in zip(scores.softmax(-1).unbind(-1), seen)))

    def split(self, queries: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, n, h, d), keys and values (B, m, h, d)."""
        k, v = self.key_value(context).unflatten(2, (2, self.num_heads, -1)).unbind(2)
        return self.query(queries).unflatten(2, (self.num_heads, -1)), k, v

    def merge(self, heads: Tensor) -> Tensor:
        return self.norm(self.proj(heads.flatten(2)).relu())


def _closed(x: Tensor, mask: Tensor | None) -> Tensor:
    """(B, N, C) -> (B, N + 2, C): the last real row before the first, and the first behind the last."""
    if mask is None:
        return torch.cat([x[:, -1:], x, x[:, :1]], 1)
    place = torch.arange(-1, x.shape[1] + 1, device=x.device) % mask.sum(1, keepdim=True)
    return x.gather(1, place.unsqueeze(-1).expand(-1, -1, x.shape[2]))
