"""Isotropic models: one resolution and one width throughout, as in ViT."""

from __future__ import annotations

from layerzoo.models.block import Block
from layerzoo.models.model import Model, drop_path_rates


class Isotropic(Model):
    """Stem, position, `depth` blocks, norm, head (ViT, arXiv 2010.11929, with mean pooling in place of a class token).

    Args:
        dim: channels C.
        depth: number of blocks.
        layer: name, {"name": ..., option: ...} or class; or a list of these, cycled over the blocks.
        ffn: the same for the per-position unit; ["swiglu", "glam"] has experts in every other block.
        position: encoding after the stem, or "rope2d" | "relative_bias" for layers that take one.
        stem: stem name or dict.
        head: options of Head, and norm: that of the last map.
        block: further options of Block: norm, drop_path (of the last block), layer_scale, num_heads.
        input_size: (in_chans, H, W); tables are built for it, other sizes run too.
        num_classes: logits; 0 = pooled features.
    Raises:
        ValueError: for unknown names and options.
    """

    def __init__(
        self, *, dim: int, depth: int, layer: str | dict | type | list = "mhsa", ffn: str | dict | type | list = "mlp", position: str | dict = "learned",
        stem: str | dict = "patchify", head: dict | None = None, block: dict | None = None, input_size: tuple[int, int, int] = (3, 224, 224),
        num_classes: int = 1000,
    ):
        config = {"model": "isotropic"} | {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__(config, dim, dim, head or {})
        options = dict(block or {})
        rates = drop_path_rates(options.pop("drop_path", 0.0), depth)
        layers, ffns = (part if isinstance(part, list) else [part] for part in (layer, ffn))
        self.stages.extend(
            Block(dim, layer=layers[i % len(layers)], ffn=ffns[i % len(ffns)], drop_path=rate, grid=self.grid, position=self.inner_position, **options)
            for i, rate in enumerate(rates))
