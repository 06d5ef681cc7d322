"""Pyramids: stages of falling resolution and rising width, from any list of layers and classic blocks."""

from __future__ import annotations

from layerzoo.errors import bad_value
from layerzoo.models.model import Model, drop_path_rates
from layerzoo.models.stage import Stage


class Pyramid(Model):
    """Stem, position, stages, norm, head (the MetaFormer form, arXiv 2210.13452).

    Args:
        dims: channels of each stage.
        depths: blocks of each stage.
        layer: a layer or classic block (basic, bottleneck, mbconv, inverted_residual, convnext, airbench); or a list with one entry per stage,
            where an entry may itself be a list, cycled over the blocks of the stage. A layer's "block" has options of its own Block.
        ffn: per-position unit of the blocks around layers; or a list with one entry per stage.
        downsample: between stages, which lowers the resolution; or a list with one entry per stage, of which the first does nothing.
        position: encoding after the stem, with {"name": ..., "after": "block"} after the first block of each stage; or "rope2d" |
            "relative_bias" for layers that take one.
        stem: stem name or dict.
        head: options of Head, and norm and num_features of the last map; see Model.
        block: further options of Block: norm, drop_path (of the last block), layer_scale, num_heads.
        input_size: (in_chans, H, W); tables are built for it, other sizes run too.
        num_classes: logits; 0 = pooled features.
    Raises:
        ValueError: for unknown names and options, and for lists that do not have one entry per stage.
    """

    where_positions_go = ("stem", "block")

    def __init__(
        self, *, dims: list[int], depths: list[int], layer: str | dict | type | list, ffn: str | dict | type | list = "mlp",
        downsample: str | dict | list = "conv_stride", position: str | dict = "none", stem: str | dict = "overlap", head: dict | None = None,
        block: dict | None = None, input_size: tuple[int, int, int] = (3, 224, 224), num_classes: int = 1000,
    ):
        config = {"model": "pyramid"} | {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        for what, given in {"depths": depths, "layer": layer, "ffn": ffn, "downsample": downsample}.items():
            if isinstance(given, list) and len(given) != len(dims):
                raise bad_value(what, got=f"{len(given)} entries", expected=f"one per stage, {len(dims)} as in dims", do="Give one entry for each stage.")
        super().__init__(config, dims[0], dims[-1], head or {})
        options = dict(block or {})
        rates = drop_path_rates(options.pop("drop_path", 0.0), sum(depths))
        dim_in, grid = self.stem_width, self.grid
        for i, (dim, depth) in enumerate(zip(dims, depths)):
            here = {"ffn": ffn[i] if isinstance(ffn, list) else ffn, "position": self.inner_position} | options
            down = downsample[i] if isinstance(downsample, list) else downsample
            stage = Stage(
                dim_in, dim, layer=layer[i] if isinstance(layer, list) else layer, rates=rates[sum(depths[:i]): sum(depths[: i + 1])],
                downsample=down if i else None, grid=grid, options=here, position=self.stage_position)
            self.stages.append(stage)
            dim_in, grid = dim, stage.grid
