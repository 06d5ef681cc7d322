"""The residual unit: pre-norm, layer, residual; pre-norm, ffn, residual; or the norm last. It exists once."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.layers.base import check_choice
from layerzoo.registry import FFNS, LAYERS


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of a map (B, C, H, W); a view away from the token form if x is channels_last."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class DropPath(nn.Module):
    """Drop a residual branch for whole samples with probability `drop`, scaling the kept ones (arXiv 1603.09382)."""

    def __init__(self, drop: float):
        super().__init__()
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.drop == 0:
            return x
        keep = torch.empty(x.shape[0], 1, 1, 1, dtype=x.dtype, device=x.device).bernoulli_(1 - self.drop)
        return x * (keep / (1 - self.drop))


class LayerScale(nn.Module):
    """Learned scale per channel of a map (arXiv 2103.17239)."""

    def __init__(self, dim: int, start: float):
        super().__init__()
        self.scale = nn.Parameter(torch.full((dim, 1, 1), float(start)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def create_norm(name: str, dim: int) -> nn.Module:
    """A norm of maps: "layer" (over channels), "group" (one group: over the whole sample), "batch" or "none"."""
    check_choice("norm", name, ("layer", "group", "batch", "none"))
    makers = {"layer": LayerNorm2d, "group": lambda d: nn.GroupNorm(1, d), "batch": nn.BatchNorm2d, "none": lambda d: nn.Identity()}
    return makers[name](dim)


class Block(nn.Module):
    """x + drop_path(scale layer(norm(x))), then x + drop_path(scale ffn(norm(x))), on maps (B, C, H, W).

    With post_norm the norm follows the sum, as in the first Transformer: norm(x + drop_path(scale layer(x))), and so on.

    Args:
        dim: channels C.
        layer: name, {"name": ..., option: ...} or class.
        ffn: the same for the per-position unit, or "none".
        norm: "layer", "group", "batch" or "none".
        drop_path: probability of dropping a branch.
        layer_scale: initial residual scale; None = no scale.
        num_heads: heads, for layers that take the option and are not given it.
        grid: (H, W) of the map, for layers that take the option and are not given it.
        position: "rope2d" or "relative_bias", for layers that take the option; None = the layer's own.
        post_norm: normalise the sum, not the branch's input.
        dropout: probability of dropping a value of a branch's output.
    Raises:
        ValueError: for unknown names and options.
    """

    def __init__(
        self, dim: int, *, layer: str | dict | type, ffn: str | dict | type = "mlp", norm: str = "layer", drop_path: float = 0.0,
        layer_scale: float | None = None, num_heads: int | None = None, grid: tuple[int, int] | None = None, position: str | None = None,
        post_norm: bool = False, dropout: float = 0.0,
    ):
        super().__init__()
        defaults = {k: v for k, v in {"num_heads": num_heads, "grid": grid}.items() if v is not None}
        options = {} if position is None else {"position": position}
        self.post_norm = post_norm
        self.norm = create_norm(norm, dim)
        self.layer = LAYERS.create(layer, dim, defaults=defaults, **options)
        self.layer_branch = _branch(dim, layer_scale, drop_path, dropout)
        if ffn != "none":
            self.ffn_norm = create_norm(norm, dim)
            self.ffn = FFNS.create(ffn, dim, defaults=defaults)
            self.ffn_branch = _branch(dim, layer_scale, drop_path, dropout)
        else:
            self.ffn = None

    def forward(self, x: Tensor) -> Tensor:
        if self.post_norm:
            x = self.norm(x + self.layer_branch(self.layer(x)))
            return x if self.ffn is None else self.ffn_norm(x + self.ffn_branch(self.ffn(x)))
        x = x + self.layer_branch(self.layer(self.norm(x)))
        return x if self.ffn is None else x + self.ffn_branch(self.ffn(self.ffn_norm(x)))


def create_block(layer: str | dict | type, dim: int, *, ffn: str | dict | type = "mlp", norm: str = "layer", drop_path: float = 0.0,
                 layer_scale: float | None = None, num_heads: int | None = None, grid: tuple[int, int] | None = None) -> Block:
    """A residual unit around a layer; see Block for the arguments."""
    return Block(dim, layer=layer, ffn=ffn, norm=norm, drop_path=drop_path, layer_scale=layer_scale, num_heads=num_heads, grid=grid)


def _branch(dim: int, layer_scale: float | None, drop_path: float, dropout: float) -> nn.Sequential:
    parts = (nn.Dropout(dropout) if dropout else None, None if layer_scale is None else LayerScale(dim, layer_scale), DropPath(drop_path) if drop_path else None)
    return nn.Sequential(*(part for part in parts if part is not None))
