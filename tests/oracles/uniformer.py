"""UniFormer's relation aggregators, one place at a time."""

from oracles.mobilevit import attention, convolved, each_sample, linear


def twin(layer, tokens, grid, mask=None):
    def mix(x, real):
        z = x + convolved(layer.position, x, grid, real)
        if layer.relation is None:
            y = attention(layer, z, [[j for j in range(len(x)) if real[j]]] * len(x))
        else:
            y = convolved(layer.relation, linear(layer.qkv, z), grid, real)
        return z - x + linear(layer.proj, y)

    return each_sample(tokens, mask, mix)
