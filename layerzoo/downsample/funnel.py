"""Funnel: the pooled map asks the whole map by attention, and what it hears is added to it."""

from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.downsample.base import Downsample
from layerzoo.layers.base import as_map, check_choice, check_heads, map_to_tokens, tokens_to_map
from layerzoo.ops.attention import attend


class Funnel(Downsample):
    """Query-only pooling.

    **Paper**: Funnel-Transformer, arXiv 2006.03236.

    y = W_s pool(x) + W_o concat_h(softmax(q_h k_h^T / sqrt(d)) v_h), with n = LayerNorm(x), q linear in pool(n), k and v linear in n.

    pool takes the mean, or the largest, of 2x2 places; at an odd side of those that there are. W_s is there only where C_out differs
    from C. The residual is part of the downsample, as no block is around it.

    **Shape**: (B, C, H, W) -> (B, C_out, ceil(H / 2), ceil(W / 2)).

    **Cost**: time N^2 C / 4 + N C^2; memory N C.

    **Args**:
        dim: channels C, also of the attention.
        dim_out: channels C_out; the paper's is C.
        num_heads: h; None = one head per 32 channels.
        pool: "mean" or "max"; mean, the paper's choice.
        qkv_bias: bias in q, k, v; on, as in ViT.

    **Raises**: ValueError for a dim or dim_out below 1, num_heads that do not divide dim, an unknown pool, and for an input that is
    not (B, C, H, W).

    **Example**:
        >>> import torch
        >>> Funnel(64, 128)(torch.randn(2, 64, 7, 6)).shape
        torch.Size([2, 128, 4, 3])

    **Differs from the paper**: its sublayer that shortens, without the feed-forward, which is that of the next block. The layer norm
    comes before, as in all blocks here, where the paper has it after the sum; no relative positions; cells of 2x2 for spans of 2, so N
    falls to a quarter; no class token that is kept apart; W_s where the channels change.
    """

    card = Card(
        title="Funnel (query-only pooling)", paper="2006.03236", year=2020, survey="FP+DS", cost=(2, 1), mask=False, needs_grid=True,
        sizes={"tiny": {"dim": 8, "dim_out": 16, "num_heads": 2}, "base": {"dim": 64, "dim_out": 128, "pool": "max"},
               "odd": {"dim": 5, "dim_out": 5, "qkv_bias": False}},
        differs="the norm comes before; no relative positions; cells of 2x2 for spans of 2; a projected residual where channels change",
        cannot={"mask": "it is a unit of maps, and a map has no places to leave out"})

    def __init__(self, dim: int, dim_out: int, *, num_heads: int | None = None, pool: str = "mean", qkv_bias: bool = True):
        super().__init__(dim, dim_out)
        check_choice("pool", pool, ("mean", "max"))
        self.num_heads, self.pool = check_heads(dim, num_heads), pool
        self.norm = nn.LayerNorm(dim)
        self.query, self.key_value = nn.Linear(dim, dim, bias=qkv_bias), nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim_out)
        self.skip = nn.Linear(dim, dim_out, bias=False) if dim != dim_out else nn.Identity()

    def reduce(self, x: Tensor) -> Tensor:
        pool = F.avg_pool2d if self.pool == "mean" else F.max_pool2d
        normed, kept = self.norm(map_to_tokens(x)), pool(x, 2, ceil_mode=True)  # in ceil mode a mean counts only what is in the map
        asking = pool(as_map(normed, x.shape[2:]), 2, ceil_mode=True)
        q = self.query(map_to_tokens(asking)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.key_value(normed).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        heard = self.proj(attend(q, k, v).transpose(1, 2).flatten(2))
        return tokens_to_map(self.skip(map_to_tokens(kept)) + heard, kept)
