"""Isotropic models: one resolution and one width throughout, as in ViT."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from layerzoo.layers.base import as_map, map_to_tokens, tokens_to_map
from layerzoo.models.block import Block
from layerzoo.models.model import Model, drop_path_rates
from layerzoo.models.slots import TokenSlot


class PrefixSlot(TokenSlot):
    """A layer on a map of one row that holds prefix tokens, then the places of a map; what those see is told by TokenSlot."""

    def forward(self, x: Tensor) -> Tensor:
        return tokens_to_map(self.mix(map_to_tokens(x)), x)


class Isotropic(Model):
    """Stem, position, `depth` blocks, norm, head (ViT, arXiv 2010.11929, with mean pooling in place of a class token).

    With prefix tokens, of which ViT's class token is one and which head={"pool": "first"} reads, blocks see one row of these and of all
    places, and so does `forward_features` return it. Layers that need a map see it without them, at the size that the model is built for.

    Args:
        dim: channels C.
        depth: number of blocks.
        layer: name, {"name": ..., option: ...} or class; or a list of these, cycled over the blocks.
        ffn: the same for the per-position unit; ["swiglu", "glam"] has experts in every other block.
        position: encoding after the stem, or "rope2d" | "relative_bias" for layers that take one.
        stem: stem name or dict.
        head: options of Head, and norm and num_features of the last map; see Model.
        block: further options of Block: norm, drop_path (of the last block), layer_scale, num_heads.
        input_size: (in_chans, H, W); tables are built for it, other sizes run too.
        num_classes: logits; 0 = pooled features.
        num_prefix: learned tokens before those of the map.
    Raises:
        ValueError: for unknown names and options.
    """

    def __init__(
        self, *, dim: int, depth: int, layer: str | dict | type | list = "mhsa", ffn: str | dict | type | list = "mlp", position: str | dict = "learned",
        stem: str | dict = "patchify", head: dict | None = None, block: dict | None = None, input_size: tuple[int, int, int] = (3, 224, 224),
        num_classes: int = 1000, num_prefix: int = 0,
    ):
        config = {"model": "isotropic"} | {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__(config, dim, dim, head or {})
        options = dict(block or {})
        rates = drop_path_rates(options.pop("drop_path", 0.0), depth)
        layers, ffns = (part if isinstance(part, list) else [part] for part in (layer, ffn))
        self.num_prefix = num_prefix
        if num_prefix:
            self.prefix = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, num_prefix, dim), std=0.02))
        for i, rate in enumerate(rates):
            unit = Block(
                dim, layer=layers[i % len(layers)], ffn=ffns[i % len(ffns)], drop_path=rate, grid=self.grid, position=self.inner_position, **options)
            if num_prefix:
                unit.layer = PrefixSlot(unit.layer, num_prefix, self.grid, num_heads=options.get("num_heads"))
            self.stages.append(unit)

    def as_map(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        if not self.num_prefix:
            return x
        return as_map(map_to_tokens(x)[:, self.num_prefix:], tuple(-(-side // self.stem.stride) for side in size))

    def _start(self, x: Tensor) -> Tensor:
        x = super()._start(x)
        if not self.num_prefix:
            return x
        tokens = torch.cat([self.prefix.to(x.dtype).expand(len(x), -1, -1), map_to_tokens(x)], 1)
        return as_map(tokens, (1, tokens.shape[1]))
