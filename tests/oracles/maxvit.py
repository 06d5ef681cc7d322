"""MaxViT, one place at a time: windows and grids as sets of places."""

from oracles.grid_attention import offset_bias, on_grid
from oracles.mobilevit import attention, convolved, each_sample, gelu, linear, normed, sigmoid, silu


def mobile(conv, x, grid, real):
    hidden = gelu(convolved(conv.depthwise, gelu(linear(conv.expand, x)), grid, real))
    mean = sum(row for row, there in zip(hidden, real) if there) / sum(real)
    return linear(conv.project, hidden * sigmoid(linear(conv.excite, silu(linear(conv.squeeze, mean)))))


def in_windows(layer, x, grid, real):
    size, width = layer.window_size, grid[1]
    window = [(i // width // size, i % width // size) for i in range(len(x))]
    seen = [[j for j in range(len(x)) if window[j] == own and real[j]] for own in window]
    return attention(layer, x, seen, offset_bias(layer, grid, (1, 1)))


def twin(layer, tokens, grid, mask=None):
    def mix(x, real):
        u = x + mobile(layer.conv, x, grid, real)
        u = u + linear(layer.block_attention.proj, in_windows(layer.block_attention, normed(layer.block_norm, u), grid, real))
        u = u + linear(layer.ffn.fc2, gelu(linear(layer.ffn.fc1, normed(layer.ffn_norm, u))))
        u = u + linear(layer.grid_attention.proj, on_grid(layer.grid_attention, normed(layer.grid_norm, u), grid, real))
        return u - x

    return each_sample(tokens, mask, mix)
