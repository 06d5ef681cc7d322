"""Improved clustered attention, one query at a time: its cluster's weights, redistributed among the largest of them."""

import torch
from oracles.clustered import by_head, centers_of, weights
from oracles.linear_attention import projected


def twin(layer, tokens, grid, mask=None):
    def mix(head, q, k, v):
        for x, center in zip(q, centers_of(layer, q)):
            common = weights(center, k)
            top = sorted(range(len(k)), key=lambda j: -common[j].item())[: layer.num_top]
            mass = sum(common[j] for j in top)
            own = {j: mass * a for j, a in zip(top, weights(x, [k[j] for j in top]))}
            yield torch.stack([own.get(j, common[j]) * v[j] for j in range(len(k))]).sum(0)

    return by_head(layer, projected(layer, tokens), mask, mix)
