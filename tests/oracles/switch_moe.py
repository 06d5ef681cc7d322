"""Top-1 experts, one token at a time, with a count of the slots that are taken."""

import math

import torch


def gelu(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def expert(layer, e, x):
    """Expert e of one token."""
    net = layer.experts
    hidden = net.weight1[e].T @ x
    if net.gated:
        half = len(hidden) // 2
        return net.weight2[e].T @ (gelu(hidden[:half]) * hidden[half:])
    return net.weight2[e].T @ gelu(hidden + net.bias1[e, 0]) + net.bias2[e, 0]


def softmax(scores):
    weights = [math.e**s for s in scores - max(scores)]
    return [w / sum(weights) for w in weights]


def served(layer, tokens, mask, plan):
    """Sum of gate * expert over the choices plan(x) = [(expert, gate), ...] of every token, best first, while experts have room.

    All tokens are served with their first choice before any is with its second; causal, one token after another, with the room for
    the tokens so far.
    """
    rows = [[torch.zeros_like(x) for x in sample] for sample in tokens]
    num_experts = len(layer.experts.weight1)
    above, below = layer.shares[0]
    for n, sample in enumerate(tokens):
        real = [i for i in range(len(sample)) if mask is None or mask[n, i]]
        plans = {i: plan(sample[i]) for i in real}
        taken, turns = [0] * num_experts, range(max((len(p) for p in plans.values()), default=0))
        order = [(i, turn) for i in real for turn in turns] if layer.causal else [(i, turn) for turn in turns for i in real]
        for i, turn in order:
            e, gate = plans[i][turn]
            there = real.index(i) + 1 if layer.causal else len(real)
            if taken[e] < math.ceil(there * above / below):
                rows[n][i] = rows[n][i] + gate * expert(layer, e, sample[i])
                taken[e] += 1
    return torch.stack([torch.stack(r) for r in rows])


def twin(layer, tokens, grid, mask=None):
    def plan(x):
        probs = softmax(layer.router.weight @ x)
        best = max(range(len(probs)), key=lambda e: probs[e].item())
        return [(best, probs[best])]

    return served(layer, tokens, mask, plan)
