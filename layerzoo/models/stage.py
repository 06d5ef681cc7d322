"""A stage: a downsample, then blocks at one resolution."""

from __future__ import annotations

import inspect

from torch import Tensor, nn

from layerzoo.downsample.base import halved
from layerzoo.errors import unknown_name
from layerzoo.models.block import Block
from layerzoo.models.classic import WHOLE_BLOCKS
from layerzoo.registry import DOWNSAMPLES, POSITIONS


class Stage(nn.Module):
    """(B, dim_in, H, W) -> (B, dim, H', W'); `grid` is (H', W') of the size it was built for.

    Args:
        dim_in: channels that come in.
        dim: channels inside.
        layer: layer or classic block, one for all blocks or a list cycled over them; {"name": ..., "block": {...}} has options of Block
            that differ for this layer.
        rates: drop path of each block; its length is the depth.
        downsample: name or dict; None = same resolution. Classic blocks that stride do it themselves.
        grid: (H, W) of the map that comes in.
        options: further options of Block.
        position: encoding after the first block.
    """

    def __init__(
        self, dim_in: int, dim: int, *, layer: str | dict | type | list, rates: list[float], downsample: str | dict | None, grid: tuple[int, int],
        options: dict, position: str | dict = "none",
    ):
        super().__init__()
        layers = [_as_dict(spec) for spec in (layer if isinstance(layer, list) else [layer])]
        first = WHOLE_BLOCKS.get(layers[0]["name"])
        strided = first is not None and first.strided
        self.downsample = nn.Identity()
        if downsample is not None and not strided:
            self.downsample = DOWNSAMPLES.create(downsample, dim_in, dim, defaults={"grid": grid})
            grid = self.downsample.out_grid(grid)
        elif downsample is not None:
            grid = halved(grid)
        elif dim_in != dim and not strided:
            self.downsample = nn.Conv2d(dim_in, dim, 1)
        self.grid = grid
        self.blocks = nn.Sequential()
        for i, rate in enumerate(rates):
            spec = layers[i % len(layers)]
            if spec["name"] in WHOLE_BLOCKS:
                stride = 2 if i == 0 and strided and downsample is not None else 1
                self.blocks.append(_whole_block(dict(spec), dim_in if i == 0 and strided else dim, dim, stride, rate))
            else:
                own = {"grid": grid, "drop_path": rate} | options | spec.get("block", {})
                self.blocks.append(Block(dim, layer={k: v for k, v in spec.items() if k != "block"}, **own))

        self.position = POSITIONS.create(position, dim, defaults={"grid": grid})

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        for i, block in enumerate(self.blocks):
            x = self.position(block(x)) if i == 0 else block(x)
        return x


def _as_dict(spec: str | dict | type) -> dict:
    return dict(spec) if isinstance(spec, dict) else {"name": spec}


def _whole_block(spec: dict, dim_in: int, dim: int, stride: int, drop_path: float) -> nn.Module:
    name = spec.pop("name")
    taken = inspect.signature(WHOLE_BLOCKS[name]).parameters
    for option in spec:
        if option not in taken:
            raise unknown_name(f"option of {name}", option, taken, "help(layerzoo.models.classic)")
    given = {k: v for k, v in {"stride": stride, "drop_path": drop_path}.items() if k in taken}
    return WHOLE_BLOCKS[name](dim_in, dim, **(given | spec))
