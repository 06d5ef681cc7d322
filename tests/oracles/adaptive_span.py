"""Adaptive span, one query at a time: exponentials times the soft mask, over their sum."""

import math

from oracles.blockwise import one_by_one


def soft_mask(layer, head, distance):
    share = layer.spans[head]
    z = layer.max_span * (share + (share.clamp(0, 1) - share).detach())
    return ((layer.ramp_size + z - distance) / layer.ramp_size).clamp(0, 1)


def twin(layer, tokens, grid, mask=None):
    def mix(head, i, q, keys, values):
        seen = [j for j in range(len(keys)) if abs(i - j) < layer.max_span and (j <= i or not layer.causal)]
        weights = [soft_mask(layer, head, abs(i - j)) * (q @ keys[j] / math.sqrt(len(q))).exp() for j in seen]
        return sum(w * values[j] for w, j in zip(weights, seen)) / sum(weights)

    return one_by_one(layer, tokens, mask, mix)
