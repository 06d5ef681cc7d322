"""Scatterbrain: exact attention weights near a query, and random features for all others."""

import torch
from torch import Tensor

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import HeadsLayer
from layerzoo.layers.efficient.performer import Performer, orthogonal_gaussian
from layerzoo.ops.linear_recurrence import full_precision, no_autocast
from layerzoo.ops.sequence import real_first
from layerzoo.ops.window_features import window_and_features


class Scatterbrain(HeadsLayer):
    """Low-rank attention, corrected where it matters by sparse attention.

    **Paper**: Scatterbrain: Unifying Sparse and Low-rank Attention Approximation, arXiv 2110.15343.

    y_i = W_o concat_h(sum_j a_ij v_j / sum_j a_ij), a_ij = phi(q_i) . phi(k_j) + [j in S_i] (exp(q_i k_j / sqrt(d)) - phi(q_i) . phi(k_j)),
    phi_r(x) = m^(-1/2) exp(w_r . x' - |x'|^2 / 2), x' = x d^(-1/4), the positive features of performer. S_i are the block of w tokens
    that holds i and the blocks next to it; with causal that block up to i and the one before.

    The far sum is attention too: to m keys w_r, with scores w_r . q' - |q'|^2 / 2 + log(z_r / m), where z_r is the sum of
    exp(w_r . k'_j - |k'_j|^2 / 2) over the j outside S_i, and the means of v_j under these weights as values. So both parts are one
    softmax, on one scale, over 3 w + m keys.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same; a map is read row by row.

    **Cost**: time N C (3 w + 3 m) + N C^2; memory N C (3 + 2 m / w) + N h m.

    **Args**:
        dim: channels C.
        num_heads: h; None = one head per 32 channels.
        num_features: m; None = d, fewer than performer's d ln d, since the window takes the largest weights off them.
        window_size: w, in tokens; 32, so that 14 x 14 tokens make seven blocks.
        qkv_bias: bias in q, k, v; on, as in ViT.
        causal: position i sees positions up to i, in row-major order.

    **Raises**: ValueError for num_features or window_size below 1 and num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("scatterbrain", dim=64, window_size=8)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: S_i are neighbours, as in the local variant of its code, and not the keys that hashing (LSH) finds;
    nothing is added to the features, since the exact weights keep the normaliser from zero.
    """

    card = Card(
        title="Scatterbrain attention", paper="2110.15343", year=2021, cost=(1, 1), causal=True,
        sizes={"tiny": {"dim": 8, "num_heads": 2, "num_features": 6, "window_size": 3},
               "base": {"dim": 64, "num_heads": 4, "window_size": 8},
               "odd": {"dim": 15, "num_heads": 3, "num_features": 7, "window_size": 5, "qkv_bias": False}},
        limit={"equals": "mhsa", "options": {"window_size": 24}, "grid": (4, 6)},
        differs="the exact weights are those of neighbours, not of keys found by hashing; nothing is added to the features")

    def __init__(
        self, dim: int, *, num_heads: int | None = None, num_features: int | None = None, window_size: int = 32, qkv_bias: bool = True,
        causal: bool = False,
    ):
        super().__init__(dim, num_heads, qkv_bias)
        self.num_features = self.head_dim if num_features is None else num_features
        for what, given in (("num_features", self.num_features), ("window_size", window_size)):
            if given < 1:
                raise bad_value(what, got=given, expected="a whole number >= 1", do="Leave it out for d features, or 32 tokens.")
        self.window_size, self.causal = window_size, causal
        self.register_buffer("directions", orthogonal_gaussian(self.num_features, self.head_dim))

    redraw = Performer.redraw

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        return real_first(self.mix_packed, tokens, mask)

    def mix_packed(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """The formula, on tokens whose real ones come first."""
        real = torch.ones_like(tokens[..., 0], dtype=torch.bool) if mask is None else mask
        q, k, v, directions = full_precision(*self.split(tokens), self.directions)
        with no_autocast(tokens.device):
            y = window_and_features(q, k, v, directions, real, min(self.window_size, tokens.shape[1]), self.causal)
        return self.merge(y.to(tokens.dtype))
