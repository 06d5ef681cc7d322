"""Routing Transformer: online k-means routes tokens to clusters, and attention stays inside each."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import HeadsLayer
from layerzoo.ops.attention import attend
from layerzoo.ops.auxiliary import add_loss, add_statistic, collecting
from layerzoo.ops.clusters import (
    LAST, closeness, online_kmeans, project_precisely, rows, same_label, scatter_mean, sort_by_label, steps_behind, with_previous)
from layerzoo.ops.sequence import real_first


class Routing(HeadsLayer):
    """Attention inside k clusters of queries and keys; some heads are local instead.

    **Paper**: Efficient Content-Based Sparse Attention with Routing Transformers, arXiv 2003.05997.

    Cluster c holds the w = N / k queries and the w keys nearest to its centroid mu_c, q and k being layer-normed (no scale, no bias):
    y_i = W_o concat_h(mean_c sum_j softmax_j(q_i k_j / sqrt(d)) v_j) over the clusters c that hold i, 0 where none does, and their
    keys j. A local head has blocks of w tokens for clusters. In training mu_c moves to the mean of the q and k nearest to it.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same; positions are row by row.

    **Cost**: time N^2 C / k + N C k + N C^2: N^1.5 C for the paper's k = sqrt(N); memory N (C + h k), causal + N^2 h / k for a mask.

    **Args**:
        dim: channels C.
        num_heads: h; None = one head per 32 channels.
        num_clusters: k; 16, about sqrt(N) of 14 x 14 tokens.
        num_local_heads: heads with blocks for clusters, the first ones; None = half of them, as in the paper.
        qkv_bias: bias in q, k, v; on, as in ViT.
        causal: queries are keys too, as in the paper; position i sees itself and the w positions of its cluster before it, row by row.
        decay: of the centroids' moving mean; 0.999, as is usual.
        commitment: weight of the auxiliary loss |x - mu|^2 of queries and keys; 1e-4, as is usual (the paper states none).

    **Raises**: ValueError for num_clusters below 1, a num_local_heads or decay out of range, and num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("routing", dim=64, num_clusters=4)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: centroids stay on the unit sphere; a token of several clusters takes the mean; local heads have blocks,
    not sliding windows. With causal a cluster is the w nearest before: the w nearest of all positions would tell of the future.
    """

    card = Card(
        title="Routing attention", paper="2003.05997", year=2020, survey="LP", cost=(2, 1), causal=True,
        sizes={"tiny": {"dim": 8, "num_heads": 2, "num_clusters": 3}, "base": {"dim": 64, "num_heads": 4, "num_clusters": 6},
               "odd": {"dim": 15, "num_heads": 3, "num_clusters": 5, "num_local_heads": 0, "qkv_bias": False}},
        differs="centroids of length one; a token of several clusters takes the mean; local heads have blocks; causal clusters are windows; w follows N")

    def __init__(
        self, dim: int, *, num_heads: int | None = None, num_clusters: int = 16, num_local_heads: int | None = None,
        qkv_bias: bool = True, causal: bool = False, decay: float = 0.999, commitment: float = 1e-4,
    ):
        super().__init__(dim, num_heads, qkv_bias)
        if num_clusters < 1:
            raise bad_value("num_clusters", got=num_clusters, expected="a whole number of centroids >= 1", do="Choose about sqrt(N).")
        local = self.num_heads // 2 if num_local_heads is None else num_local_heads
        if not 0 <= local < self.num_heads:
            raise bad_value("num_local_heads", got=local, expected=f"0 to {self.num_heads - 1}, so that one is routed", do="Leave it out.")
        if not 0 <= decay <= 1:
            raise bad_value("decay", got=decay, expected="a part of 1 that centroids keep in a step", do="Choose one such as 0.999.")
        self.num_clusters, self.num_local_heads, self.causal, self.decay, self.commitment = num_clusters, local, causal, decay, commitment
        if causal:
            self.qkv = nn.Linear(dim, 2 * dim, bias=qkv_bias)  # queries, which are keys too, and values
        self.register_buffer("centroids", F.normalize(torch.randn(self.num_heads - local, num_clusters, self.head_dim), dim=-1))

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        return real_first(lambda packed, real: self.merge(self.mix_heads(packed, real)), tokens, mask)

    def mix_heads(self, tokens: Tensor, real: Tensor | None) -> Tensor:
        """Heads (B, h, N, d) of tokens (B, N, C) whose real ones come first."""
        parts, shape = project_precisely(tokens, self.qkv, self.dim), (-1, self.num_heads, self.head_dim)
        (q, *k), (v,) = (t.unflatten(2, shape).permute(2, 0, 3, 1, 4).unbind(0) for t in parts)
        q, *k = (F.layer_norm(t, shape[2:]) for t in (q, *k))
        length = q.new_full((len(q), 1), q.shape[2], dtype=torch.long) if real is None else real.sum(1, keepdim=True)
        y = self.mix_past(q, v, real, length) if self.causal else self.mix_clusters(q, *k, v, real, length)
        if self.training or collecting():
            x = F.normalize(torch.cat([q, *k], 2)[:, self.num_local_heads:], dim=-1)
            add_loss("commitment", online_kmeans(self.centroids, x, real, self.decay if self.training else None), self.commitment)
        return y

    def mix_clusters(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor | None, length: Tensor) -> Tensor:
        """Each cluster takes its queries and keys; `length` (B, 1) counts the real tokens."""
        (queries, asks), (keys, answers) = self._members(q, real, length), self._members(k, real, length)
        size, answers = q.shape[2], (answers | ~answers.any(-1, keepdim=True)).flatten(0, 1).unsqueeze(2)
        bias = None if real is None and size % self.num_clusters == 0 else torch.where(answers, 0.0, float("-inf"))
        y = attend(*(rows(t.to(v.dtype), index).flatten(0, 1) for t, index in ((q, queries), (k, keys), (v, keys))), bias=bias)
        y, taken = scatter_mean(y.reshape(*queries.shape[:2], -1, self.head_dim), queries.flatten(2), asks.flatten(2), size)
        if collecting():
            left = (taken[:, self.num_local_heads:] == 0) & (torch.arange(size, device=q.device) < length)[:, None]
            add_statistic("unrouted", left.sum() / (length.sum() * len(self.centroids)).clamp(min=1))
        return y

    def mix_past(self, q: Tensor, v: Tensor, real: Tensor | None, length: Tensor) -> Tensor:
        """Each token's cluster is that of its centroid, or one for all in local heads; it sees the w members before it."""
        labels = F.pad(closeness(q[:, self.num_local_heads:], self.centroids).argmax(-1), (0, 0, self.num_local_heads, 0))
        labels = labels if real is None else labels.masked_fill(~real[:, None], LAST)
        size, width = -(-q.shape[2] // self.num_clusters), -(-length // self.num_clusters)
        chunks, order, place = sort_by_label(labels, size)
        seen, behind = same_label(chunks), steps_behind(size, q.device)
        seen = seen & (behind >= 0) & (behind <= width[..., None, None, None])
        q, v = rows(torch.cat([q.to(v.dtype), v], -1), order).unflatten(2, (-1, size)).flatten(0, 1).split(self.head_dim, -1)
        y = attend(q, with_previous(q), with_previous(v), bias=torch.where(seen, 0.0, float("-inf")).flatten(0, 1))
        return rows(y.unflatten(0, seen.shape[:2]).flatten(2, 3), place[..., : labels.shape[2]])

    def _members(self, x: Tensor, real: Tensor | None, length: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of each cluster (B, h, k, ceil(N / k)), and which of these count: ceil(length / k), real ones."""
        slot, width = torch.arange(-(-x.shape[2] // self.num_clusters), device=x.device), -(-length // self.num_clusters)
        block = width[..., None] * torch.arange(self.num_clusters, device=x.device)[:, None] + slot  # (B, k, slots)
        near = closeness(self.centroids, x[:, self.num_local_heads:])
        near = near if real is None else near.masked_fill(~real[:, None, None], float("-inf"))
        tokens = torch.cat([block[:, None].expand(-1, self.num_local_heads, -1, -1), near.topk(len(slot)).indices], 1)
        return tokens.clamp(max=x.shape[2] - 1), (slot < width[..., None, None]) & (tokens < length[..., None, None])
