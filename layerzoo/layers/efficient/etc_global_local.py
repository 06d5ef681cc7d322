"""ETC: tokens attend to their neighbours and to learned global tokens, which have read the whole input before."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import HeadsLayer
from layerzoo.ops.sequence import real_first
from layerzoo.ops.windows import SHORTEST_BLOCK, attend_blocks, blocks, windows


class ETC(HeadsLayer):
    """Global-local attention with relative position labels.

    **Paper**: ETC, Encoding Long and Structured Inputs in Transformers, arXiv 2004.08483.

    G' = G + W_g concat_h(softmax([q_g k_gg, q_g k_gl] / sqrt(d)) [v_gg, v_gl]), keys and values of G (g, C), learned, and of all tokens;
    y_i = W_o concat_h(softmax([q_i k_lg, q_i (k_j + a_l(i, j))] / sqrt(d)) [v_lg, v_j]), keys and values of G' and of the tokens j with
    |i - j| <= r. Labels l are offsets j - i clipped to -k ... k, with a vector a_l for each head. The four pieces g2g, g2l, l2g and l2l
    have keys and values of their own; g2g, g2l and l2g have one label each, which is the bias of their keys.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same; a map is read row by row.

    **Cost**: time N C (r + g) + N C^2; memory N C + N h (r + g). Not causal: the global tokens see all.

    **Args**:
        dim: channels C.
        radius: r, in tokens; 32, since the paper's 84 is for 4096 tokens.
        max_distance: k, in tokens; 12, the paper's code.
        num_global: g; 16, as the paper's 230 are for 4096 tokens. With 0 there is l2l alone.
        num_heads: h; None = one head per 32 channels.
        qkv_bias: bias in queries, keys and values; on, as in the paper's code.

    **Raises**: ValueError for a radius, max_distance or num_global below 0, and num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("etc_global_local", dim=64, radius=9, num_global=4)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: the global input is learned and ends with the layer, so it reads before the tokens do (there both at
    once, from the layer before) and has no norm and no feed-forward; labels of structure and the pretraining by CPC are left out.
    """

    card = Card(
        title="ETC global-local attention", paper="2004.08483", year=2020, survey="FP+M", cost=(1, 1), symmetry="translation",
        sizes={"tiny": {"dim": 8, "num_heads": 2, "radius": 3, "max_distance": 2, "num_global": 2}, "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 15, "num_heads": 3, "radius": 19, "max_distance": 30, "num_global": 1, "qkv_bias": False}},
        limit={"equals": "mhsa", "options": {"radius": 24, "num_global": 0}, "grid": (4, 6), "set": {"relative": "zeros"}},
        differs="the global input is learned and reads before the tokens do, without norm and feed-forward; no labels of structure, no CPC")

    def __init__(
        self, dim: int, *, radius: int = 32, max_distance: int = 12, num_global: int = 16, num_heads: int | None = None,
        qkv_bias: bool = True,
    ):
        super().__init__(dim, num_heads, qkv_bias)
        for what, got, usual in (("radius", radius, 84), ("max_distance", max_distance, 12), ("num_global", num_global, 230)):
            if got < 0:
                raise bad_value(what, got=got, expected="a whole number of tokens >= 0", do=f"The paper's is {usual}, for 4096 tokens.")
        self.radius, self.max_distance, self.num_global = radius, max_distance, num_global
        self.relative = nn.Parameter(nn.init.trunc_normal_(torch.empty(self.num_heads, 2 * max_distance + 1, self.head_dim), std=0.02))
        if num_global:
            self.global_tokens = nn.Parameter(nn.init.trunc_normal_(torch.empty(num_global, dim), std=0.02))
            self.global_qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
            self.key_value_g2l = nn.Linear(dim, 2 * dim, bias=qkv_bias)
            self.global_proj = nn.Linear(dim, dim)
            self.key_value_l2g = nn.Linear(dim, 2 * dim, bias=qkv_bias)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        return real_first(lambda packed, real: self.proj(self.mix_long(packed, real)), tokens, mask)

    def mix_long(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """l2g and l2l: heads joined (B, N, C), of tokens (B, N, C) whose real ones come first."""
        real = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else mask
        reach = min(self.radius, tokens.shape[1] - 1)
        size = min(max(reach, SHORTEST_BLOCK), tokens.shape[1])
        place = size, size + 2 * reach, reach
        q, kv = self.qkv(tokens).tensor_split((self.dim,), dim=-1)
        kv = windows(kv, *place, self.key_value_l2g(self.read(tokens, mask)) if self.num_global else None)
        q, seen = blocks(q, size), windows(real[..., None], *place).mT | ~blocks(real[..., None], size)
        bias = torch.where(seen.flatten(0, 1).unsqueeze(1), self.local_scores(q, reach), float("-inf"))
        y = attend_blocks(q, kv, self.num_heads, bias=F.pad(bias, (0, self.num_global)))
        return y.flatten(1, 2)[:, : tokens.shape[1]]

    def local_scores(self, q: Tensor, reach: int) -> Tensor:
        """(B n, h, size, size + 2 reach): q_i a_l(i, j) / sqrt(d) for blocks q (B, n, size, C), -inf where |i - j| > reach."""
        size = q.shape[2]
        label = torch.arange(-reach, reach + 1, device=q.device).clamp(-self.max_distance, self.max_distance) + self.max_distance
        q = q.flatten(0, 1).unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)
        scores = self.head_dim**-0.5 * q @ self.relative[:, label].mT
        # rows longer by one than the keys: read without the one, each row starts one key after that above
        scores = F.pad(scores, (0, size), value=float("-inf")).flatten(2)
        return scores[..., :-size].unflatten(2, (size, -1))

    def read(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """g2g and g2l: the global tokens (B, 1, g, C) after they attended to themselves and to all tokens."""
        q, own = self.global_qkv(self.global_tokens).expand(len(tokens), -1, -1).tensor_split((self.dim,), dim=-1)
        kv = torch.cat([own, self.key_value_g2l(tokens)], 1).unsqueeze(1)
        seen = None if mask is None else F.pad(mask, (self.num_global, 0), value=True)[:, None, None]
        return self.global_tokens + self.global_proj(attend_blocks(q.unsqueeze(1), kv, self.num_heads, seen))
