"""Global context, the weight of one position after the other."""

import torch
from oracles.gmlp import normalised
from oracles.se import mapped, sigmoid


def twin(layer, x):
    samples = []
    for sample in x:
        places = list(sample.flatten(1).T)
        weights = [(layer.score.weight.flatten() @ place).exp() for place in places]
        context = sum(w * place for w, place in zip(weights, places)) / sum(weights)
        hidden = normalised(layer.norm, mapped(layer.fc1, context)).clamp(min=0)
        change = mapped(layer.fc2, hidden)
        changed = [place + change if layer.fuse == "add" else place * sigmoid(change) for place in places]
        samples.append(torch.stack(changed, 1).reshape(sample.shape))
    return torch.stack(samples)
