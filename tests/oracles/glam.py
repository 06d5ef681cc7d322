"""Top-2 experts, one token at a time."""

from oracles.switch_moe import served, softmax


def twin(layer, tokens, grid, mask=None):
    def plan(x):
        probs = softmax(layer.router.weight @ x)
        first, second = sorted(range(len(probs)), key=lambda e: -probs[e].item())[:2]
        return [(e, probs[e] / (probs[first] + probs[second])) for e in (first, second)]

    return served(layer, tokens, mask, plan)
