"""A stage: a downsample, then blocks at one resolution."""

from __future__ import annotations

import inspect

from torch import Tensor, nn

from layerzoo.downsample.base import halved
from layerzoo.errors import unknown_name
from layerzoo.models.block import Block
from layerzoo.models.classic import WHOLE_BLOCKS
from layerzoo.registry import DOWNSAMPLES


class Stage(nn.Module):
    """(B, dim_in, H, W) -> (B, dim, H', W'); `grid` is (H', W') of the size it was built for.

    Args:
        dim_in: channels that come in.
        dim: channels inside.
        layer: layer or classic block, one for all blocks or a list cycled over them.
        rates: drop path of each block; its length is the depth.
        downsample: name or dict; None = same resolution. Classic blocks that stride do it themselves.
        grid: (H, W) of the map that comes in.
        options: further options of Block.
    """

    def __init__(
        self, dim_in: int, dim: int, *, layer: str | dict | type | list, rates: list[float], downsample: str | dict | None, grid: tuple[int, int],
        options: dict,
    ):
        super().__init__()
        layers = [_as_dict(spec) for spec in (layer if isinstance(layer, list) else [layer])]
        first = WHOLE_BLOCKS.get(layers[0]["name"])
        strided = first is not None and first.strided
        resize = (downsample is not None or dim_in != dim) and not strided
        self.downsample = DOWNSAMPLES.create(downsample or "conv_stride", dim_in, dim) if resize else nn.Identity()
        if resize:
            grid = self.downsample.out_grid(grid)
        elif strided and downsample is not None:
            grid = halved(grid)
        self.grid = grid
        self.blocks = nn.Sequential()
        for i, rate in enumerate(rates):
            spec = layers[i % len(layers)]
            if spec["name"] in WHOLE_BLOCKS:
                stride = 2 if i == 0 and strided and downsample is not None else 1
                self.blocks.append(_whole_block(dict(spec), dim_in if i == 0 and strided else dim, dim, stride, rate))
            else:
                self.blocks.append(Block(dim, layer=spec, drop_path=rate, **({"grid": grid} | options)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


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
