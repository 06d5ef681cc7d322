"""Clustered attention: queries are clustered, and only the clusters' means attend."""

import torch
from torch import Tensor

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import HeadsLayer
from layerzoo.ops.attention import attend
from layerzoo.ops.clusters import hamming_clusters
from layerzoo.ops.sequence import real_first


class Clustered(HeadsLayer):
    """Softmax attention of the means of clusters of queries.

    **Paper**: Fast Transformers with Clustered Attention, arXiv 2007.04825.

    y_i = W_o concat_h(softmax(c_g K_h^T / sqrt(d)) V_h), c_g the mean of the queries of the cluster g that q_i is in: L steps of
    Lloyd's k-means on the b signs of q R, R Gaussian, in Hamming space. Clusters have no gradient, their means do.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same; clusters start at tokens in equal steps, row by row.

    **Cost**: time N k C + L N h k b + N C^2 for k clusters; memory N (C + h k).

    **Args**:
        dim: channels C.
        num_heads: h; None = one head per 32 channels.
        num_clusters: k, at most N; 25, the paper's for sequences of a few hundred tokens.
        num_bits: b; 32, the paper's code (its text has 63).
        num_iterations: L; 10, the paper's.
        qkv_bias: bias in q, k, v; on, as in ViT.

    **Raises**: ValueError for num_clusters and num_bits below 1, num_iterations below 0, and num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("clustered", dim=64, num_clusters=8)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: R is drawn once and k-means starts at tokens in equal steps, not at random ones, so that the layer is
    a function of its input.
    """

    card = Card(
        title="Clustered attention", paper="2007.04825", year=2020, survey="LP", cost=(1, 1),
        sizes={"tiny": {"dim": 8, "num_heads": 2, "num_clusters": 3, "num_bits": 6, "num_iterations": 3},
               "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 15, "num_heads": 3, "num_clusters": 5, "num_bits": 9, "qkv_bias": False}},
        limit={"equals": "mhsa", "options": {"num_clusters": 24}, "grid": (4, 6)},
        differs="hash directions are drawn once, and k-means starts at tokens in equal steps")

    def __init__(
        self, dim: int, *, num_heads: int | None = None, num_clusters: int = 25, num_bits: int = 32, num_iterations: int = 10,
        qkv_bias: bool = True,
    ):
        super().__init__(dim, num_heads, qkv_bias)
        for name, value, least in (("num_clusters", num_clusters, 1), ("num_bits", num_bits, 1), ("num_iterations", num_iterations, 0)):
            if value < least:
                raise bad_value(name, got=value, expected=f"a whole number >= {least}", do="The paper has 25, 63 and 10.")
        self.num_clusters, self.num_iterations = num_clusters, num_iterations
        self.register_buffer("directions", torch.randn(self.head_dim, num_bits))

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        return real_first(lambda packed, real: self.merge(self.mix_heads(*self.split(packed), real)), tokens, mask)

    def mix_heads(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor | None) -> Tensor:
        """Heads (B, h, N, d) of tokens whose real ones come first."""
        member, means = self.cluster(q, real)
        return member @ attend(means, k, v, real)

    def cluster(self, q: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
        """Who is in which cluster, 1 or 0 (B, h, N, k), and the mean of each (B, h, k, d)."""
        with torch.no_grad():
            signs = torch.where(q @ self.directions.to(q.dtype) > 0, 1.0, -1.0)
        member = hamming_clusters(signs, real, min(self.num_clusters, q.shape[2]), self.num_iterations).to(q.dtype)
        return member, member.mT @ q / member.sum(2).clamp(min=1).unsqueeze(-1)
