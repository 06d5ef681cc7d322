"""Attention-augmented convolution: some channels come from a convolution, the others from attention with relative positions."""

import torch
from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import TokenLayer, check_grid, check_odd
from layerzoo.ops.relative_logits import RelativeLogits
from layerzoo.ops.token_maps import convolve


class AttentionAugmentedConv(TokenLayer):
    """A dense convolution beside relative self-attention.

    **Paper**: Attention Augmented Convolutional Networks, arXiv 1904.09925.

    y = [conv(x), W_o concat_h(sum_j softmax_j(q_i . (k_j + r[y_j - y_i] + c[x_j - x_i]) / sqrt(d_k)) v_j)], with r and c one learned vector
    for each offset of rows and of columns, shared by the heads. Attention gives d_v h of the C channels, the convolution the rest.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same; r and c are resized linearly for other maps than `grid`.

    **Cost**: time N^2 h (d_k + H + W) + N C^2 K^2, that is N^2.5 on a square map; memory N (C + h (d_k + H + W)), and no N x N matrix.

    **Args**:
        dim: channels C.
        grid: (H, W) the embeddings are built for.
        num_heads: h; None = 8, the paper's, or as many as leave each the paper's least of 20 channels for its keys, or 1.
        key_ratio: h d_k / C, d_k rounded and at least 1; 0.2, the paper's.
        value_ratio: h d_v / C, d_v rounded and at least 1; 0.1, the paper's.
        kernel_size: K of the convolution in positions, odd; 3, the paper's.

    **Raises**: ValueError for a grid that is not (H, W), an even kernel_size, num_heads below 1, a ratio that is not above 0, and
    attention that leaves the convolution no channel.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("attention_augmented_conv", dim=64, grid=(8, 8))(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: stride 1 and as many channels out as in; keys of fewer than 20 channels are not widened to as many.
    """

    card = Card(
        title="Attention-augmented convolution", paper="1904.09925", year=2019, cost=(2.5, 1.5), needs_grid=True,
        sizes={"tiny": {"dim": 8, "grid": (3, 4), "num_heads": 2, "key_ratio": 0.5, "value_ratio": 0.5},
               "base": {"dim": 64, "grid": (8, 8)},
               "odd": {"dim": 15, "grid": (5, 3), "num_heads": 3, "value_ratio": 0.8, "kernel_size": 5}},
        differs="stride 1 and as many channels out as in; keys of fewer than 20 channels are not widened to as many",
        cannot={"padding": "the embeddings span the grid, and padding makes another grid, for which they are resized"})

    def __init__(
        self, dim: int, *, grid: tuple[int, int], num_heads: int | None = None, key_ratio: float = 0.2, value_ratio: float = 0.1,
        kernel_size: int = 3,
    ):
        super().__init__(dim)
        self.grid = check_grid(grid)
        check_odd("kernel_size", kernel_size)
        self.num_heads = max(1, min(8, int(key_ratio * dim) // 20)) if num_heads is None else num_heads
        if self.num_heads < 1:
            raise bad_value("num_heads", got=num_heads, expected="a whole number of heads >= 1", do="The paper's are 8.")
        if min(key_ratio, value_ratio) <= 0:
            got, expected = f"{key_ratio} and {value_ratio}", "two numbers above 0"
            raise bad_value("key_ratio and value_ratio", got=got, expected=expected, do="The paper's are 0.2 and 0.1.")
        key_dim, value_dim = (self.num_heads * max(1, round(ratio * dim / self.num_heads)) for ratio in (key_ratio, value_ratio))
        if value_dim >= dim:
            expected = f"fewer than dim={dim}, so that the convolution has some"
            raise bad_value("channels of attention", got=value_dim, expected=expected, do="Choose a smaller value_ratio or num_heads.")
        self.widths = key_dim, key_dim, value_dim
        self.conv = nn.Conv2d(dim, dim - value_dim, kernel_size, padding=kernel_size // 2)
        self.qkv = nn.Linear(dim, sum(self.widths))
        self.relative = RelativeLogits(key_dim // self.num_heads, self.grid)
        self.proj = nn.Linear(value_dim, value_dim)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        convolved = convolve(self.conv, tokens, grid)
        q, k, v = (t.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for t in self.qkv(tokens).split(self.widths, 2))
        attended = self.proj(self.relative(q, k, v, grid, mask).transpose(1, 2).flatten(2))
        return torch.cat([convolved, attended], 2)
