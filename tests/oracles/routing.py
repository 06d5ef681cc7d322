"""Routing attention, cluster by cluster over lists of the queries and keys in it; causal, query by query over its past."""

import torch
from oracles.clustered import by_head, weights
from oracles.linear_attention import projected
from oracles.reformer import shared


def normed(row):
    """A row without mean, of variance one."""
    row = row - row.mean()
    return row / (row.square().mean() + 1e-5).sqrt()


def nearest(rows, center, width):
    """Numbers of the rows with the largest products."""
    products = [(row @ center).item() for row in rows]
    return sorted(range(len(rows)), key=lambda i: -products[i])[:width]


def clusters(layer, head, q, k):
    """(queries, keys) of each cluster."""
    width = -(-len(q) // layer.num_clusters)
    if head < layer.num_local_heads:
        blocks = [list(range(b, min(b + width, len(q)))) for b in range(0, len(q), width)]
        return [(block, block) for block in blocks]
    return [(nearest(q, c, width), nearest(k, c, width)) for c in layer.centroids[head - layer.num_local_heads]]


def members_before(layer, head, q, i):
    """The token itself and as many of its cluster before it as a cluster holds."""
    width = -(-len(q) // layer.num_clusters)
    if head < layer.num_local_heads:
        return list(range(max(0, i - width), i + 1))
    home = [nearest(layer.centroids[head - layer.num_local_heads], x, 1) for x in q]
    return [j for j in range(i + 1) if home[j] == home[i]][-width - 1:]


def twin(layer, tokens, grid, mask=None):
    def mix(head, q, k, v):
        q, k, found = [normed(x) for x in q], [normed(x) for x in k], [[] for _ in q]
        for asking, answering in clusters(layer, head, q, k):
            for i in asking:
                found[i].append(weights(q[i], [k[j] for j in answering]) @ v[answering])
        return [sum(rows) / len(rows) if rows else torch.zeros_like(v[0]) for rows in found]

    def mix_causal(head, q, v):
        q = [normed(x) for x in q]
        for i in range(len(q)):
            seen = members_before(layer, head, q, i)
            yield weights(q[i], [q[j] for j in seen]) @ v[seen]

    if layer.causal:
        return by_head(layer, shared(layer, tokens, layer.qkv), mask, mix_causal)
    return by_head(layer, projected(layer, tokens), mask, mix)
