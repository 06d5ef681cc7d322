"""Attention among tokens that belong together: sorted by label, cut into chunks and put back; and the steps of k-means."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.ops.linear_recurrence import full_precision, no_autocast
from layerzoo.ops.sequence import take

LAST = 2**31 - 1  # the label of masked and of added tokens: they sort behind all others and see only each other


def project_precisely(x: Tensor, linear: nn.Linear, rest: int) -> tuple[Tensor, Tensor]:
    """A projection in two parts: the last `rest` channels as usual; those before, which decide where a token goes, in float32 at
    least, so that half precision sends it nowhere else."""
    parts = (linear.out_features - rest, rest)
    weight, bias = linear.weight.split(parts), (None, None) if linear.bias is None else linear.bias.split(parts)
    with no_autocast(x.device):
        precise = F.linear(*full_precision(x, weight[0]), bias[0] if bias[0] is None else full_precision(bias[0])[0])
    return precise, F.linear(x, weight[1], bias[1])


def sort_by_label(labels: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The order of labels (..., N) and, inside a label, of positions, filled up to n chunks of `size` tokens.

    Returns:
        the sorted labels in chunks (..., n, size); the order (..., n * size), where numbers from N on are added tokens; its inverse.
    """
    labels, order = F.pad(labels.int(), (0, -labels.shape[-1] % size), value=LAST).sort(dim=-1, stable=True)
    place = torch.empty_like(order).scatter_(-1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order))
    return labels.unflatten(-1, (-1, size)), order, place


def rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x (B, h, N, d) at index (B, h, ...), numbers beyond the last row meaning the last: (B, h, ..., d)."""
    batch, heads, length, width = x.shape
    first = torch.arange(0, batch * heads * length, length, device=x.device).view(batch, heads, 1)
    place = (index.flatten(2).clamp(max=length - 1) + first).flatten()  # rows of one matrix: faster than gather, and more so backward
    return x.reshape(-1, width).index_select(0, place).view(*index.shape, width)


def with_previous(chunks: Tensor, fill: float = 0) -> Tensor:
    """Each chunk (..., n, m, d) behind the one before it, (..., n, 2 m, d); before the first stands `fill`."""
    return torch.cat([F.pad(chunks[..., :-1, :, :], (0, 0, 0, 0, 1, 0), value=fill), chunks], -2)


def same_label(labels: Tensor) -> Tensor:
    """Which keys of its chunk and of the one before have the label of a query: (..., n, m) -> (..., n, m, 2 m)."""
    labels = labels.unsqueeze(-1)
    return labels == with_previous(labels, -1).mT


def steps_behind(size: int, device: torch.device) -> Tensor:
    """How far a key of a chunk and of the one before stands behind a query in the sorted sequence, (m, 2 m); negative = ahead."""
    place = torch.arange(2 * size, device=device)
    return place[size:, None] - place


def blocks_of_one(labels: Tensor, num_labels: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens in blocks of `size` slots such that a block holds one label alone; slots may stay empty.

    Args:
        labels: (B, h, N), below num_labels.
    Returns:
        the token in each slot (B, h, n, size), 0 in empty ones; the slot of each token (B, h, N), of n * size; the label of each
        block (B, h, n). n is the most that may be needed, (N + num_labels (size - 1)) // size.
    """
    count = labels.new_zeros(*labels.shape[:2], num_labels).scatter_add_(2, labels, torch.ones_like(labels))
    blocks = -(-count // size)
    ends, total = blocks.cumsum(-1), (labels.shape[2] + num_labels * (size - 1)) // size
    place = sort_by_label(labels, 1)[2]
    slot = place + ((ends - blocks) * size - count.cumsum(-1) + count).gather(2, labels)
    tokens = torch.arange(labels.shape[2], device=labels.device).expand_as(labels)
    filled = labels.new_zeros(*labels.shape[:2], total * size).scatter_(2, slot, tokens)
    numbers = torch.arange(total, device=labels.device).expand(*labels.shape[:2], -1).contiguous()
    return filled.unflatten(2, (-1, size)), slot, torch.searchsorted(ends, numbers, right=True).clamp(max=num_labels - 1)


def scatter_mean(y: Tensor, index: Tensor, counts: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The mean of the rows that belong to each of `length` places, 0 where there is none, and their number.

    Args:
        y: (B, h, M, d).
        index: (B, h, M), the place of each row.
        counts: (B, h, M) bool, whether a row counts.
    Returns:
        (B, h, length, d) and (B, h, length).
    """
    counts = counts.to(y.dtype)
    number = y.new_zeros(*y.shape[:2], length).scatter_add(2, index, counts)
    total = y.new_zeros(*y.shape[:2], length, y.shape[3]).scatter_add(2, index.unsqueeze(-1).expand_as(y), y * counts.unsqueeze(-1))
    return total / number.clamp(min=1).unsqueeze(-1), number


@torch.no_grad()
def closeness(x: Tensor, centroids: Tensor) -> Tensor:
    """Products of rows (..., N, d) and centroids (..., K, d), in float32 at least, without gradients: (..., N, K)."""
    x, centroids = full_precision(x, centroids)
    with no_autocast(x.device):
        return x @ centroids.mT


@torch.no_grad()
def move_centroids(centroids: Tensor, x: Tensor, labels: Tensor, real: Tensor | None, decay: float) -> None:
    """One step of online k-means on the unit sphere, in place: c <- decay c + (1 - decay) mean of its rows, then of length one.

    A centroid without rows stays. Ranks of a parallel run each move their own; DistributedDataParallel spreads those of the first.

    Args:
        centroids: (h, K, d).
        x: (B, h, N, d), of length one.
        labels: (B, h, N).
        real: (B, N) bool, True = real token.
    """
    member = (labels.unsqueeze(-1) == torch.arange(centroids.shape[1], device=labels.device)).to(centroids.dtype)
    if real is not None:
        member = member * real[:, None, :, None]
    with no_autocast(x.device):
        total, count = (member.mT @ x.to(member.dtype)).sum(0), member.sum((0, 2)).unsqueeze(-1)
    moved = F.normalize(decay * centroids + (1 - decay) * total / count.clamp(min=1), dim=-1)
    centroids.copy_(torch.where(count > 0, moved, centroids))


def online_kmeans(centroids: Tensor, x: Tensor, real: Tensor | None, decay: float | None) -> Tensor:
    """Mean squared distance of rows x, of length one, to their nearest centroids, which then move unless decay is None.

    Shapes as in `move_centroids`, except that x may have the rows of all tokens several times over; the distance has gradients for x
    alone.
    """
    real = None if real is None else real.repeat(1, x.shape[2] // real.shape[1])
    labels = closeness(x, centroids).argmax(-1)
    away = (x - centroids[torch.arange(len(centroids), device=x.device)[:, None], labels]).square().sum(-1).mean(1)
    if decay is not None:
        move_centroids(centroids, x.detach(), labels, real, decay)
    return away.mean() if real is None else (away * real).sum() / real.sum().clamp(min=1)


@torch.no_grad()
def hamming_clusters(signs: Tensor, real: Tensor | None, num_clusters: int, num_steps: int) -> Tensor:
    """Lloyd's k-means in Hamming space: a centroid's bit is the majority of its members', at a tie the one it had.

    Clusters start at tokens in equal steps through the real ones; of clusters equally near, the first counts. An empty one stays.

    Args:
        signs: (B, h, N, b) of 1 and -1, real tokens first.
        real: (B, N) bool, True = real token.
    Returns:
        (B, h, N, num_clusters) float32: 1 at the cluster of each real token, else 0.
    """
    signs, number = signs.float(), torch.arange(num_clusters, device=signs.device)
    length = signs.shape[2] if real is None else real.sum(1, keepdim=True)
    centroids = take(signs, ((2 * number + 1) * length // (2 * num_clusters)).expand(len(signs), -1))
    signs = signs if real is None else signs * real[:, None, :, None]  # zeros add nothing to a majority
    first = 1 - number / num_clusters  # products of signs are whole numbers, so fractions decide only between equals
    with no_autocast(signs.device):
        for _ in range(num_steps):
            member = _winners((signs @ centroids.mT).add_(first))
            votes = member.mT @ signs
            centroids = torch.where(votes == 0, centroids, votes.sign())
        member = _winners((signs @ centroids.mT).add_(first))
    return member if real is None else member * real[:, None, :, None]


def _winners(scores: Tensor) -> Tensor:
    return scores.eq_(scores.amax(-1, keepdim=True))  # in place, as 0 and 1 of its own type
