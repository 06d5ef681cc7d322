"""Tables bound to the places of a map, at the size of another map."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def resize_places(table: Tensor, built: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """A table (..., H W) whose last axis lists the places of the map `built`, bilinearly at the places of the map `grid`."""
    if grid == built:
        return table
    maps = table.reshape(1, -1, *built)
    return F.interpolate(maps, size=grid, mode="bilinear", align_corners=False).reshape(*table.shape[:-1], -1)


def resize_pairs(table: Tensor, built: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """A table (..., H W, H W) of pairs of places, both axes resized."""
    return resize_places(resize_places(table, built, grid).mT, built, grid).mT
