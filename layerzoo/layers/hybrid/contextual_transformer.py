"""The contextual transformer layer: a convolution of the keys is the static context, from which the weights of the dynamic one are made."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import TokenLayer, as_map, check_heads, check_odd, map_to_tokens
from layerzoo.ops.local_sums import local_sums
from layerzoo.ops.token_maps import mean_token


class ContextualTransformer(TokenLayer):
    """Static and dynamic context of the keys, fused by channel.

    **Paper**: Contextual Transformer Networks, arXiv 2107.12292.

    k = relu(conv(x)) is the static context, in g groups; w = W_2 relu(W_1 [x, k]) has K^2 weights for each place and head;
    u_i = silu(sum_o w_i[o] v_{i+o}) is the dynamic context, v = W_v x, o over the K x K places around i. y = a k + (1 - a) u, where a in
    (0, 1) for each channel is made from the mean over the map of k + u.

    **Shape**: (B, C, H, W) or (B, N, C) with `grid=` -> the same, any H and W.

    **Cost**: time N C^2 (K^2 / g + 3) and N C K^2; memory N C (4 + K^2 / 8).

    **Args**:
        dim: channels C.
        num_heads: h, sets of weights for C / h channels each; None = one per 8 channels, the paper's code.
        kernel_size: K in positions, odd; 3, the paper's.
        num_groups: g of the convolution; None = 4, the paper's code, or the most below that divide dim.
        reduction: by which the hidden layer of the weights is narrower than C; 2, the paper's code. That of the fusion is twice that.

    **Raises**: ValueError for an even kernel_size, num_heads or num_groups that do not divide dim, and a reduction below 1.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("contextual_transformer", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: no batch norm, and no group norm of the weights, which its code has: a layer of this library gives one
    sample the same result in any batch. Neighbouring channels share their weights, in its code every (C / 8)-th.
    """

    card = Card(
        title="Contextual transformer layer", paper="2107.12292", year=2021, cost=(1, 1), needs_grid=True,
        sizes={"tiny": {"dim": 8, "num_heads": 2}, "base": {"dim": 64},
               "odd": {"dim": 15, "num_heads": 3, "kernel_size": 5, "num_groups": 5, "reduction": 4}},
        differs="no batch norm, and no group norm of the weights, which its code has; neighbouring channels share their weights")

    def __init__(
        self, dim: int, *, num_heads: int | None = None, kernel_size: int = 3, num_groups: int | None = None, reduction: int = 2,
    ):
        super().__init__(dim)
        self.num_heads = check_heads(dim, _most(dim, dim // 8) if num_heads is None else num_heads)
        check_odd("kernel_size", kernel_size)
        num_groups = _most(dim, 4) if num_groups is None else num_groups
        if num_groups < 1 or dim % num_groups:
            raise bad_value("num_groups", got=num_groups, expected=f"a divisor of dim={dim}", do="Leave it out for 4 or the most below.")
        if reduction < 1:
            raise bad_value("reduction", got=reduction, expected="a number >= 1", do="The paper's is 2.")
        self.kernel_size = kernel_size
        hidden, narrow = max(1, int(dim / reduction)), max(1, int(dim / (2 * reduction)))
        self.key = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=num_groups, bias=False)
        self.value = nn.Conv2d(dim, dim, 1, bias=False)
        self.weights = nn.Sequential(
            nn.Conv2d(2 * dim, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, self.num_heads * kernel_size**2, 1))
        self.fuse = nn.Sequential(nn.Linear(dim, narrow), nn.ReLU(), nn.Linear(narrow, dim))

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        x = as_map(tokens, grid)
        static = self.key(x).relu()
        weights = self.weights(torch.cat([x, static], 1)).unflatten(1, (self.num_heads, -1))
        dynamic = F.silu(local_sums(self.value(x), weights, self.kernel_size))
        static, dynamic = (map_to_tokens(t) for t in (static, dynamic))
        share = self.fuse(mean_token(static + dynamic, mask)).sigmoid()
        return torch.lerp(dynamic, static, share)


def _most(dim: int, limit: int) -> int:
    """The largest divisor of dim up to `limit`, or 1."""
    return next((n for n in range(limit, 1, -1) if dim % n == 0), 1)
