"""Improved clustered attention: queries attend exactly to the keys that matter most to their cluster, and with it to the others."""

import torch
from torch import Tensor

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.efficient.clustered import Clustered
from layerzoo.ops.attention import attend
from layerzoo.ops.clusters import blocks_of_one, rows


class ImprovedClustered(Clustered):
    """Clustered attention, exact on the t keys of the largest weight of each cluster.

    **Paper**: Fast Transformers with Clustered Attention, arXiv 2007.04825.

    y_i = W_o concat_h(m_g sum_(j in T_g) softmax_j(q_i k_j / sqrt(d)) v_j + sum_(j not in T_g) a_gj v_j), with
    a_g = softmax(c_g K_h^T / sqrt(d)) of the mean c_g of i's cluster g, T_g its t largest weights and m_g = sum_(j in T_g) a_gj, so
    that the weights sum to one. Clusters as in `clustered`.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same; clusters start at tokens in equal steps, row by row.

    **Cost**: time N C (k + t) + L N h k b + N C^2 for k clusters; memory N (C + h k) + k t C.

    **Args**:
        dim: channels C.
        num_heads: h; None = one head per 32 channels.
        num_clusters: k, at most N; 25, the paper's for sequences of a few hundred tokens.
        num_top: t, keys seen exactly; 32, the paper's.
        num_bits: b, of the hash; 32, the paper's code (its text has 63).
        num_iterations: L, of k-means; 10, the paper's.
        qkv_bias: bias in q, k, v; on, as in ViT.

    **Raises**: ValueError for num_clusters, num_top and num_bits below 1, num_iterations below 0, and num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("improved_clustered", dim=64, num_clusters=8, num_top=16)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: R is drawn once and k-means starts at tokens in equal steps, not at random ones, so that the layer is
    a function of its input.
    """

    card = Card(
        title="Improved clustered attention", paper="2007.04825", year=2020, survey="LP", cost=(1, 1),
        sizes={"tiny": {"dim": 8, "num_heads": 2, "num_clusters": 3, "num_top": 4, "num_bits": 6, "num_iterations": 3},
               "base": {"dim": 64, "num_heads": 4, "num_top": 12},
               "odd": {"dim": 15, "num_heads": 3, "num_clusters": 5, "num_top": 7, "num_bits": 9, "qkv_bias": False}},
        limit={"equals": "mhsa", "options": {"num_clusters": 5, "num_top": 24}, "grid": (4, 6)},
        differs="hash directions are drawn once, and k-means starts at tokens in equal steps")

    def __init__(
        self, dim: int, *, num_heads: int | None = None, num_clusters: int = 25, num_top: int = 32, num_bits: int = 32,
        num_iterations: int = 10, qkv_bias: bool = True,
    ):
        super().__init__(
            dim, num_heads=num_heads, num_clusters=num_clusters, num_bits=num_bits, num_iterations=num_iterations, qkv_bias=qkv_bias)
        if num_top < 1:
            raise bad_value("num_top", got=num_top, expected="a whole number of keys >= 1", do="The paper has 32.")
        self.num_top = num_top

    def mix_heads(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor | None) -> Tensor:
        """Heads (B, h, N, d) of tokens whose real ones come first."""
        member, means = self.cluster(q, real)
        scores = means * self.head_dim**-0.5 @ k.mT
        scores = scores if real is None else scores.masked_fill(~real[:, None, None], float("-inf"))
        top = scores.detach().topk(min(self.num_top, k.shape[2])).indices  # (B, h, k, t)
        keys, values = rows(k, top), rows(v, top)
        weights = scores.softmax(-1).to(v.dtype)
        mass = weights.gather(-1, top)
        others = weights @ v - (mass.unsqueeze(-2) @ values).squeeze(-2)
        others, mass = (member @ torch.cat([others, mass.sum(-1, keepdim=True)], -1)).split((self.head_dim, 1), -1)
        seen = None if real is None else real[:, None].expand(-1, q.shape[1], -1).gather(2, top.flatten(2)).view_as(top)
        return mass * self.mix_top(q, keys, values, seen, member) + others

    def mix_top(self, q: Tensor, keys: Tensor, values: Tensor, seen: Tensor | None, member: Tensor) -> Tensor:
        """Exact attention of each query to keys and values (B, h, k, t, d) of its cluster, in blocks of queries of one cluster."""
        count, top = keys.shape[2:4]
        queries, slot, owner = blocks_of_one(member.argmax(-1), count, -(-q.shape[2] // count))
        q = rows(q, queries).flatten(0, 1)
        k, v = (rows(t.flatten(3), owner).unflatten(3, (top, -1)).flatten(0, 1) for t in (keys, values))
        bias = None if seen is None else torch.where(rows(seen, owner), 0.0, float("-inf")).flatten(0, 1).unsqueeze(2)
        return rows(attend(q, k, v, bias=bias).unflatten(0, owner.shape[:2]).flatten(2, 3), slot)
