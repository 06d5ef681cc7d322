"""Cluster-Former: tokens are sorted by the cluster of their features, and attend inside chunks of that order."""

import torch
from torch import Tensor
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import HeadsLayer
from layerzoo.ops.attention import attend
from layerzoo.ops.clusters import LAST, closeness, move_centroids, rows, sort_by_label


class ClusterFormer(HeadsLayer):
    """Attention inside chunks of tokens sorted by cluster.

    **Paper**: Cluster-Former, arXiv 2009.06097.

    x sorted by (argmax_c x_i mu_c, i), c among k centroids mu_c of length one, is cut into chunks of m tokens; each chunk is mixed by
    y = W_o concat_h(softmax(q_h K_h^T / sqrt(d)) V_h), q, K and V linear in its tokens, and the order is undone. In training mu_c
    moves to the mean of the x_i / |x_i| nearest to it.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same; positions are row by row.

    **Cost**: time N C (m + k) + N C^2 with a sort of N log N; memory N (C + k).

    **Args**:
        dim: channels C.
        num_heads: h; None = one head per 32 channels.
        chunk_size: m, in tokens; 64, so that 14 x 14 tokens make four chunks.
        num_clusters: k; 16, since the paper's 64 to 512 are for thousands of tokens.
        qkv_bias: bias in q, k, v; on, as in ViT.
        decay: part of a centroid kept in a step of training; 0.99, so that it follows some hundred steps.

    **Raises**: ValueError for chunk_size and num_clusters below 1, a decay that is not between 0 and 1, and num_heads that do not
    divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("clusterformer", dim=64, chunk_size=16)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: centroids are moving means, not found anew by k-means on a memory of hidden states at times. The
    sliding-window layers that the paper puts between these are layers of their own.
    """

    card = Card(
        title="Cluster-Former attention", paper="2009.06097", year=2020, survey="LP", cost=(1, 1),
        sizes={"tiny": {"dim": 8, "num_heads": 2, "chunk_size": 4, "num_clusters": 3},
               "base": {"dim": 64, "num_heads": 4, "chunk_size": 16},
               "odd": {"dim": 15, "num_heads": 3, "chunk_size": 5, "num_clusters": 7, "qkv_bias": False}},
        limit={"equals": "mhsa", "options": {"chunk_size": 24}, "grid": (4, 6)},
        differs="centroids are moving means, not found anew by k-means on a memory of hidden states at times")

    def __init__(
        self, dim: int, *, num_heads: int | None = None, chunk_size: int = 64, num_clusters: int = 16, qkv_bias: bool = True,
        decay: float = 0.99,
    ):
        super().__init__(dim, num_heads, qkv_bias)
        if chunk_size < 1:
            raise bad_value("chunk_size", got=chunk_size, expected="a whole number of sorted tokens >= 1", do="Choose one such as 64.")
        if num_clusters < 1:
            raise bad_value("num_clusters", got=num_clusters, expected="a whole number of clusters to sort by", do="Choose one such as 16.")
        if not 0 <= decay <= 1:
            raise bad_value("decay", got=decay, expected="a number from 0 to 1, the part kept", do="Choose one such as 0.99.")
        self.chunk_size, self.decay = chunk_size, decay
        self.register_buffer("centroids", F.normalize(torch.randn(1, num_clusters, dim), dim=-1))

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        batch, length, _ = tokens.shape
        x, size = tokens.unsqueeze(1), min(self.chunk_size, length)
        labels = closeness(x, self.centroids).argmax(-1)
        if self.training:
            move_centroids(self.centroids, F.normalize(x.detach(), dim=-1), labels, mask, self.decay)
        chunks, order, place = sort_by_label(labels if mask is None else labels.masked_fill(~mask[:, None], LAST), size)
        real = None
        if mask is not None or length % size:
            real = (chunks < LAST).flatten(0, 2)
            real = real | ~real.any(-1, keepdim=True)  # a chunk of masked tokens sees itself: its output is dropped
        y = self.merge(attend(*self.split(rows(x, order).reshape(-1, size, self.dim)), real))
        return rows(y.view(batch, 1, -1, self.dim), place[..., :length]).squeeze(1)
