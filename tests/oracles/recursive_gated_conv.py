"""gnConv, order by order, every order with a depthwise kernel of its own."""

from oracles.partial_conv import convolved


def rows_of(conv, first, count):
    """Weight and bias of `count` channels out."""
    return conv.weight[first: first + count], None if conv.bias is None else conv.bias[first: first + count]


def twin(layer, x):
    n, dim = len(layer.grow) + 1, x.shape[1]
    sizes = [dim // 2 ** (n - 1 - k) for k in range(n)]
    p, made = convolved(x, *rows_of(layer.proj_in, 0, sizes[0])), 0
    for k, size in enumerate(sizes):
        q = convolved(x, *rows_of(layer.proj_in, sizes[0] + made, size))
        gate = convolved(q, *rows_of(layer.conv, made, size)) * layer.scale
        p = gate * (p if k == 0 else convolved(p, layer.grow[k - 1].weight, layer.grow[k - 1].bias))
        made += size
    return convolved(p, layer.proj_out.weight, layer.proj_out.bias)
