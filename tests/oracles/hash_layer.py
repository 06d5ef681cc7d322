"""The direction that a token is nearest to names its expert, one token at a time."""

from oracles.switch_moe import served


def twin(layer, tokens, grid, mask=None):
    def plan(x):
        return [(max(range(len(layer.directions)), key=lambda e: (layer.directions[e] @ x).item()), 1)]

    return served(layer, tokens, mask, plan)
