"""The residual unit: pre-norm, layer, residual; pre-norm, ffn, residual; or the norm last. It exists once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from layerzoo.layers.base import check_choice
from layerzoo.ops.norms import create_norm
from layerzoo.registry import FFNS, LAYERS


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


class Block(nn.Module):
    """x + drop_path(scale layer(norm(x))), then x + drop_path(scale ffn(norm(x))), on maps (B, C, H, W).

    With post_norm the norm follows the sum, as in the first Transformer: norm(x + drop_path(scale layer(x))), and so on; with
    post_norm="branch" it ends the branch, as in Swin V2: x + drop_path(scale norm(layer(x))).

    Args:
        dim: channels C.
        layer: name, {"name": ..., option: ...} or class.
        ffn: the same for the per-position unit, or "none".
        norm: "layer", "group", "batch" or "none"; or {"name": ..., "eps": ...}.
        drop_path: probability of dropping a branch.
        layer_scale: initial residual scale; None = no scale.
        num_heads: heads, for layers that take the option and are not given it.
        grid: (H, W) of the map, for layers that take the option and are not given it.
        position: "rope2d" or "relative_bias", for layers that take the option; None = the layer's own.
        post_norm: normalise the sum (True) or the end of the branch ("branch"), not the branch's input.
        dropout: probability of dropping a value of a branch's output.
        residual: off = the branches alone, for layers that are blocks of their own, as MobileViT's; drop_path does nothing then.
    Raises:
        ValueError: for unknown names and options.
    """

    def __init__(
        self, dim: int, *, layer: str | dict | type, ffn: str | dict | type = "mlp", norm: str | dict = "layer", drop_path: float = 0.0,
        layer_scale: float | None = None, num_heads: int | None = None, grid: tuple[int, int] | None = None, position: str | None = None,
        post_norm: bool | str = False, dropout: float = 0.0, residual: bool = True,
    ):
        super().__init__()
        defaults = {k: v for k, v in {"num_heads": num_heads, "grid": grid}.items() if v is not None}
        options = {} if position is None else {"position": position}
        check_choice("post_norm", post_norm, (False, True, "branch"))
        self.post_norm, self.residual = post_norm, residual
        drop_path = drop_path if residual else 0.0
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
        x = self._add(x, self.layer, self.norm, self.layer_branch)
        return x if self.ffn is None else self._add(x, self.ffn, self.ffn_norm, self.ffn_branch)

    def _add(self, x: Tensor, unit: nn.Module, norm: nn.Module, branch: nn.Module) -> Tensor:
        kept = x if self.residual else 0
        if self.post_norm == "branch":
            return kept + branch(norm(unit(x)))
        return norm(kept + branch(unit(x))) if self.post_norm else kept + branch(unit(norm(x)))


def create_block(layer: str | dict | type, dim: int, *, ffn: str | dict | type = "mlp", norm: str | dict = "layer", drop_path: float = 0.0,
                 layer_scale: float | None = None, num_heads: int | None = None, grid: tuple[int, int] | None = None) -> Block:
    """A residual unit around a layer; see Block for the arguments."""
    return Block(dim, layer=layer, ffn=ffn, norm=norm, drop_path=drop_path, layer_scale=layer_scale, num_heads=num_heads, grid=grid)


def _branch(dim: int, layer_scale: float | None, drop_path: float, dropout: float) -> nn.Sequential:
    parts = (nn.Dropout(dropout) if dropout else None, None if layer_scale is None else LayerScale(dim, layer_scale), DropPath(drop_path) if drop_path else None)
    return nn.Sequential(*(part for part in parts if part is not None))
