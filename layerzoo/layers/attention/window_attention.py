"""Window attention: positions attend within square windows, which every other layer shifts by half."""

import torch
from torch import Tensor
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import HeadsLayer
from layerzoo.ops.attention import attend
from layerzoo.positions.relative_bias import RelativeBias


class WindowAttention(HeadsLayer):
    """Multi-head self-attention inside windows of w x w places.

    **Paper**: Swin, arXiv 2103.14030.

    y_i = W_o concat_h(sum_j softmax_j(q_i k_j / sqrt(d) + T_h[i - j]) v_j), j over the window of i.

    Windows start at rows and columns 0, w, 2w, ...; with shift at 0, w/2, w/2 + w, ... On an axis no longer than w there is one
    window, shifted or not. Shifted windows cost no more: the map is rolled, and places from opposite borders do not see each other.

    **Shape**: (B, C, H, W) or (B, N, C) with `grid=` -> the same, any H and W.

    **Cost**: time N w^2 C + N C^2; memory N C + N w^2 h.

    **Args**:
        dim: channels C.
        window_size: w, in positions; 7, the paper's.
        shift: windows shifted by half their side; off: models alternate.
        num_heads: h; None = one head per 32 channels, the paper's.
        qkv_bias: bias in q, k, v; on, as in the paper's code.

    **Raises**: ValueError for a window_size below 1 and for num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("window_attention", dim=64, window_size=4, shift=True)(torch.randn(2, 64, 9, 5)).shape
        torch.Size([2, 64, 9, 5])

    **Differs from the paper**: sides that w does not divide are padded and the padding is seen by nobody (there it is attended as
    zeros); an axis no longer than w is not shifted, whatever the other axis (there neither is).
    """

    card = Card(
        title="Shifted-window attention", paper="2103.14030", year=2021, survey="DS", cost=(1, 1), needs_grid=True,
        sizes={"tiny": {"dim": 8, "num_heads": 2, "window_size": 4}, "base": {"dim": 64, "num_heads": 4, "shift": True},
               "odd": {"dim": 12, "num_heads": 3, "window_size": 3, "shift": True}},
        limit={"equals": "mhsa", "options": {"window_size": 6}, "grid": (4, 6), "set": {"relative_bias.table": "zeros"}},
        differs="padding is seen by nobody; an axis no longer than the window is not shifted, whatever the other axis",
        cannot={"padding": "with shift, a map no larger than the window is one window; padded beyond it, the map is cut"})

    def __init__(self, dim: int, *, window_size: int = 7, shift: bool = False, num_heads: int | None = None, qkv_bias: bool = True):
        super().__init__(dim, num_heads, qkv_bias)
        if window_size < 1:
            raise bad_value("window_size", got=window_size, expected="a whole number >= 1", do="Pass the side of a window in positions.")
        self.window_size, self.shift = window_size, shift
        self.relative_bias = RelativeBias(self.num_heads, grid=(window_size, window_size))

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        window = tuple(min(self.window_size, side) for side in grid)
        shift = tuple(w // 2 if self.shift and side > w else 0 for w, side in zip(window, grid))
        q, k, v = self.split(_cut(tokens.unflatten(1, grid), window, shift))
        bias = self._bias(window).to(q.dtype)
        if mask is not None or any(shift) or any(side % w for side, w in zip(grid, window)):
            regions = _regions(grid, shift, tokens.device).expand(len(tokens), -1, -1)
            regions = regions if mask is None else regions * mask.unflatten(1, grid)
            regions = _cut(regions[..., None], window, shift)
            bias = torch.where((regions == regions.transpose(1, 2))[:, None], bias, float("-inf"))
        return _join(self.merge(attend(q, k, v, bias=bias)), grid, window, shift)

    def _bias(self, window: tuple[int, int]) -> Tensor:
        """(h, n, n) for the n places of a window, which may be smaller than the table's."""
        side, (height, width) = self.window_size, window
        bias = self.relative_bias.bias((side, side)).unflatten(2, (side, side)).unflatten(1, (side, side))
        return bias[:, :height, :width, :height, :width].flatten(3).flatten(1, 2)


def _regions(grid: tuple[int, int], shift: tuple[int, int], device: torch.device) -> Tensor:
    """(1, H, W): 1 to 4, different where rolling by `shift` brings opposite borders into one window; masks and padding make it 0."""
    rows, cols = (torch.arange(side, device=device) < s for side, s in zip(grid, shift))
    return (1 + rows[:, None].int() + 2 * cols.int())[None]


def _cut(x: Tensor, window: tuple[int, int], shift: tuple[int, int]) -> Tensor:
    """A map (B, H, W, C), padded and rolled, in windows: (B * windows, places, C)."""
    pad_rows, pad_cols = -x.shape[1] % window[0], -x.shape[2] % window[1]
    if pad_rows or pad_cols:  # by nothing, both would copy
        x = F.pad(x, (0, 0, 0, pad_cols, 0, pad_rows))
    if any(shift):
        x = x.roll((-shift[0], -shift[1]), (1, 2))
    return x.unflatten(2, (-1, window[1])).unflatten(1, (-1, window[0])).transpose(2, 3).flatten(3, 4).flatten(0, 2)


def _join(windows: Tensor, grid: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]) -> Tensor:
    """The inverse of `_cut`, without the padding: (B, H * W, C)."""
    down, across = (-(-side // w) for side, w in zip(grid, window))
    x = windows.unflatten(1, window).unflatten(0, (-1, down, across)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    x = x.roll(shift, (1, 2)) if any(shift) else x
    return x[:, : grid[0], : grid[1]].flatten(1, 2).contiguous()
