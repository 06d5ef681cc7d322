"""RepVGG's three branches, each normalised by its running statistics."""

from oracles.partial_conv import convolved


def normed(norm, x):
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return (x - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]


def twin(layer, x):
    wide, point = convolved(x, layer.conv.weight), convolved(x, layer.point.weight)
    return normed(layer.norm, wide) + normed(layer.point_norm, point) + normed(layer.identity_norm, x)
