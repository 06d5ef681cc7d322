"""The expert whose centroid a token likes best, gated by the sigmoid of that score, one token at a time."""

import torch
from oracles.switch_moe import served


def twin(layer, tokens, grid, mask=None):
    def plan(x):
        scores = [centroid @ x for centroid in layer.centroids]
        best = max(range(len(scores)), key=lambda e: scores[e].item())
        return [(best, 1 / (1 + torch.exp(-scores[best])))]

    return served(layer, tokens, mask, plan)
