"""Split depth-wise transpose attention, one group of channels at a time."""

import torch
from oracles import xcit
from oracles.mobilevit import convolved, each_sample, normed


def twin(layer, tokens, grid, mask=None):
    def mix(x, real):
        scales, width = [], layer.convs[0].weight.shape[0]
        for i, conv in enumerate(layer.convs):
            group = x[:, i * width: (i + 1) * width]
            scales.append(convolved(conv, group + scales[-1] if scales else group, grid, real))
        z = torch.cat([*scales, x[:, len(scales) * width:]], 1)
        return z + xcit.twin(layer.attention, normed(layer.norm, z)[None], grid, torch.tensor([real]))[0]

    return each_sample(tokens, mask, mix)
