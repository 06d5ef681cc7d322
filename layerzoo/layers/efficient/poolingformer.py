"""Poolingformer: a sliding window first, then a larger window of pooled keys and values of what the first one gave."""

import torch
from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import HeadsLayer, check_choice
from layerzoo.ops.sequence import real_first
from layerzoo.ops.windows import attend_within, windows


class Poolingformer(HeadsLayer):
    """Two-level attention: sliding window, then pooled window.

    **Paper**: Poolingformer, arXiv 2105.04371.

    out = W_o (y + z), y_i = concat_h(sum_j softmax_j(q_i k_j / sqrt(d)) v_j), |i - j| <= w_1 // 2, with q, k, v of x;
    z_i = concat_h(sum_p softmax_p(q'_i K_p / sqrt(d)) V_p), |i - s p| <= w_2 // 2, with q', k', v' of y, and K_p, V_p pooled from the
    c rows of k', v' around row s p: their mean, their largest, or sum_t a_t k'_t with a = softmax_t(W k'_sp) for each head.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same; a map is read row by row.

    **Cost**: time N C (w_1 + w_2 / s) + N C^2; memory N C.

    **Args**:
        dim: channels C.
        window_size: w_1, in tokens; 32, a quarter of the paper's 128, which is for 4096 tokens.
        pool_window: w_2, in tokens; 128, a quarter of the paper's 512.
        kernel_size: c, rows that are pooled to one; 5, the paper's.
        stride: s, from one pooled row to the next; 4, the paper's.
        pool: "mean", "max" or "dynamic", the lightweight dynamic convolution; dynamic, the paper's best.
        num_heads: h; None = one head per 32 channels.
        qkv_bias: bias in the six projections; on, as in the paper's RoBERTa.

    **Raises**: ValueError for a window_size, kernel_size or stride below 1, a pool_window below 2 (s - 1), an unknown pool, and
    num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("poolingformer", dim=64, window_size=8, pool_window=24)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: no global tokens; rows are pooled at multiples of the stride, the same for all queries (there from the
    start of each query's window), and rows beyond the ends are left out. What the paper leaves open: both levels have an output
    projection in common, and the weights of the convolution come from the whole middle row, one set for keys and one for values.
    """

    card = Card(
        title="Poolingformer two-level attention", paper="2105.04371", year=2021, survey="FP+M", cost=(1, 1),
        sizes={"tiny": {"dim": 8, "num_heads": 2, "window_size": 4, "pool_window": 9, "kernel_size": 3, "stride": 2},
               "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 15, "num_heads": 3, "window_size": 7, "pool_window": 41, "kernel_size": 4, "stride": 3, "pool": "max",
                       "qkv_bias": False}},
        limit={"equals": "mhsa", "options": {"window_size": 48}, "grid": (4, 6),
               "set": {"pool_qkv.weight": "zeros", "pool_qkv.bias": "zeros"}},
        differs="no global tokens; rows are pooled at multiples of the stride, the same for all queries; one output projection")

    def __init__(
        self, dim: int, *, window_size: int = 32, pool_window: int = 128, kernel_size: int = 5, stride: int = 4, pool: str = "dynamic",
        num_heads: int | None = None, qkv_bias: bool = True,
    ):
        super().__init__(dim, num_heads, qkv_bias)
        for what, got, usual in (("window_size", window_size, 128), ("kernel_size", kernel_size, 5), ("stride", stride, 4)):
            if got < 1:
                raise bad_value(what, got=got, expected="a whole number of positions, one or more", do=f"The paper has {usual}.")
        if pool_window < max(1, 2 * (stride - 1)):
            least = f"at least {max(1, 2 * (stride - 1))}, so that every query sees a pooled row"
            raise bad_value("pool_window", got=pool_window, expected=least, do="Choose four times window_size, as the paper.")
        check_choice("pool", pool, ("mean", "max", "dynamic"))
        self.window_size, self.pool_window, self.kernel_size, self.stride, self.pool = window_size, pool_window, kernel_size, stride, pool
        self.pool_qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        if pool == "dynamic":  # no bias: the weights depend on the row alone
            self.key_taps, self.value_taps = (nn.Linear(dim, kernel_size * self.num_heads, bias=False) for _ in range(2))

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        return real_first(lambda packed, real: self.proj(self.mix_levels(packed, real)), tokens, mask)

    def mix_levels(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """y + z, heads joined (B, N, C), of tokens (B, N, C) whose real ones come first."""
        real = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else mask
        q, kv = self.qkv(tokens).tensor_split((self.dim,), dim=-1)
        y = attend_within(q, kv, self.num_heads, real, self.window_size // 2)
        q, kv = self.pool_qkv(y).tensor_split((self.dim,), dim=-1)
        kv = self.pooled(kv, real)
        return y + attend_within(q, kv, self.num_heads, real, self.pool_window // 2, self.stride)

    def pooled(self, kv: Tensor, real: Tensor) -> Tensor:
        """Rows (B, N, 2 C), keys beside values, pooled to (B, ceil(N / s), 2 C); only real ones count."""
        place = self.stride, self.kernel_size, self.kernel_size // 2
        rows = windows(kv, *place).unflatten(3, (2, self.num_heads, self.head_dim))
        counts = windows(real[..., None], *place)[..., None, None]
        if self.pool == "max":
            largest = rows.masked_fill(~counts, float("-inf")).amax(2).flatten(2)
            return largest.masked_fill(~real[:, :: self.stride, None], 0)
        scores = torch.zeros_like(counts, dtype=kv.dtype)
        if self.pool == "dynamic":
            keys, values = kv[:, :: self.stride].chunk(2, dim=-1)
            scores = torch.stack([self.key_taps(keys), self.value_taps(values)], 2).unflatten(3, (self.kernel_size, self.num_heads))
            scores = scores.transpose(2, 3).unsqueeze(-1)
        weights = scores.masked_fill(~counts, torch.finfo(scores.dtype).min).softmax(2)
        return (weights * rows).sum(2).flatten(2)
