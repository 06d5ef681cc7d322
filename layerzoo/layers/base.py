"""The contract: a layer mixes positions, (B, C, H, W) -> (B, C, H, W); token layers also take (B, N, C)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.ops.formats import as_map, map_to_tokens


class Layer(nn.Module):
    """A layer of maps: subclasses write `mix(x)` with x of shape (B, C, H, W).

    Args:
        dim: channels C in and out.
    Raises:
        ValueError: for a dim below 1, and in `forward` for an input that is not (B, dim, H, W).
    """

    card: ClassVar[Card]

    def __init__(self, dim: int):
        super().__init__()
        if not isinstance(dim, int) or dim < 1:
            raise bad_value("dim", got=repr(dim), expected="a whole number >= 1", do="Pass the channels of the map.")
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape, dtype, device and memory format."""
        if x.ndim != 4 or x.shape[1] != self.dim:
            raise bad_value(f"input of {type(self).__name__}", got=tuple(x.shape), expected=f"a map (B, {self.dim}, H, W)", do="Check dim= and the layout.")
        return self.mix(x)

    def mix(self, x: Tensor) -> Tensor:
        """The formula of the layer."""
        raise NotImplementedError(f"{type(self).__name__} must define mix(); see layerzoo/layers/conv for examples")


class TokenLayer(Layer):
    """A layer of tokens: subclasses write `mix(tokens, grid, mask)` with tokens (B, N, C) and get maps for free.

    Args:
        dim: channels C in and out.
    Raises:
        ValueError: in `forward` for a wrong shape, a wrong mask, or tokens without a grid where the layer needs one.
    """

    grid: tuple[int, int] | None = None  # the size the tables were built for, where there are tables
    needs_grid = property(lambda self: self.card.needs_grid)

    def forward(self, x: Tensor, mask: Tensor | None = None, grid: tuple[int, int] | None = None) -> Tensor:
        """Map (B, C, H, W) or tokens (B, N, C) to the same shape.

        Args:
            x: a map, or tokens in row-major order of the map.
            mask: (B, N) bool, True = real token. Masked tokens influence nothing and come out as zeros.
            grid: (H, W) of tokens; needed for (B, N, C) input only where `needs_grid`.
        """
        tokens = map_to_tokens(x) if x.ndim == 4 else x
        grid = self._grid_of(x, grid)
        if tokens.ndim != 3 or tokens.shape[2] != self.dim:
            raise bad_value(
                f"input of {type(self).__name__}", got=tuple(x.shape), expected=f"a map (B, {self.dim}, H, W) or tokens (B, N, {self.dim})",
                do="Check dim= and the layout.")
        if mask is None:
            y = self.mix(tokens, grid)
        else:
            self._check_mask(tokens, mask)
            real = mask.unsqueeze(-1)
            y = self.mix(tokens.masked_fill(~real, 0), grid, mask).masked_fill(~real, 0)
        return y if x.ndim == 3 else tokens_to_map(y, x)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        """The formula of the layer, on tokens (B, N, C); masked tokens arrive as zeros."""
        raise NotImplementedError(f"{type(self).__name__} must define mix(); see layerzoo/layers/attention for examples")

    def _grid_of(self, x: Tensor, grid: tuple[int, int] | None) -> tuple[int, int]:
        if x.ndim == 4:
            return x.shape[2], x.shape[3]
        length = x.shape[1]
        if grid is None and self.grid is not None and self.grid[0] * self.grid[1] == length:
            return self.grid
        if grid is None and not self.needs_grid:
            return 1, length
        if grid is None or grid[0] * grid[1] != length:
            raise bad_value(
                f"grid of {type(self).__name__}", got=f"{grid} for {length} tokens", expected="(H, W) with H * W = number of tokens",
                do="Pass grid=(H, W), or the map (B, C, H, W) itself.")
        return grid

    def _check_mask(self, tokens: Tensor, mask: Tensor) -> None:
        if not self.card.mask:
            raise bad_value(f"mask of {type(self).__name__}", got="a mask", expected=f"none: {self.card.cannot['mask']}", do="Drop mask=, or choose a layer whose card says mask.")
        if str(mask.dtype) != "torch.bool" or mask.shape != tokens.shape[:2]:
            raise bad_value(
                f"mask of {type(self).__name__}", got=f"{mask.dtype} {tuple(mask.shape)}", expected=f"torch.bool {tuple(tokens.shape[:2])}, True = real token",
                do="Build it as lengths[:, None] > torch.arange(N).")


class HeadsLayer(TokenLayer):
    """A token layer with a joint query-key-value projection and an output projection, split into heads.

    Args:
        dim: channels C in and out.
        num_heads: h; None = one head per 32 channels, the largest such count that divides dim.
        qkv_bias: bias in the query, key and value projections.
    Raises:
        ValueError: if num_heads does not divide dim.
    """

    def __init__(self, dim: int, num_heads: int | None = None, qkv_bias: bool = True):
        super().__init__(dim)
        self.num_heads = check_heads(dim, num_heads)
        self.head_dim = dim // self.num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def split(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, h, N, d)."""
        return self.split_heads(self.qkv(tokens))

    def split_heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Projected tokens (B, N, 3 C) as queries, keys and values, each (B, h, N, d)."""
        parts = qkv.unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(2)  # in this order their gradients are joined in one copy
        return tuple(part.transpose(1, 2) for part in parts)

    def merge(self, heads: Tensor) -> Tensor:
        """Heads (B, h, N, d) joined and projected to (B, N, C)."""
        return self.proj(heads.transpose(1, 2).flatten(2))


def tokens_to_map(tokens: Tensor, like: Tensor) -> Tensor:
    """(B, H*W, C) -> (B, C, H, W) in the memory format of the map `like`; a view if that is channels_last."""
    y = as_map(tokens, like.shape[2:])
    return y.contiguous() if like.is_contiguous() else y


def check_heads(dim: int, num_heads: int | None) -> int:
    """The number of heads: as given if it divides dim, by default one per 32 channels rounded down to a divisor."""
    if num_heads is None:
        return next(h for h in range(max(1, dim // 32), 0, -1) if dim % h == 0)
    if num_heads < 1 or dim % num_heads:
        divisors = ", ".join(str(h) for h in range(1, dim + 1) if dim % h == 0)
        raise bad_value("num_heads", got=num_heads, expected=f"a divisor of dim={dim}", do=f"Choose one of {divisors}.")
    return num_heads


def check_choice(what: str, got: object, choices: tuple) -> None:
    """Refuse a value that is not one of `choices`."""
    if got not in choices:
        raise bad_value(what, got=repr(got), expected=f"one of {', '.join(map(str, choices))}", do="Choose one of these.")


def check_odd(what: str, got: object) -> None:
    """Refuse a side of a kernel that is not a whole odd number: only those can keep the size of a map."""
    if not isinstance(got, int) or got < 1 or got % 2 == 0:
        raise bad_value(what, got=repr(got), expected="an odd whole number >= 1", do="Choose one such as 3, 5 or 7.")


def check_grid(grid: object) -> tuple[int, int]:
    """(H, W) as a tuple of two whole numbers >= 1."""
    if grid is None or len(grid) != 2 or min(grid) < 1:
        raise bad_value("grid", got=grid, expected="(H, W), both >= 1", do="Pass the height and width of the map the layer is built for.")
    return tuple(grid)
