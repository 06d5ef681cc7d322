"""Opt-in: `import layerzoo.timm` registers every preset with timm, as layerzoo_<preset>."""

from __future__ import annotations

from timm.models import register_model

from layerzoo.errors import bad_value
from layerzoo.models.create import Model, create_model
from layerzoo.models.presets import PRESETS


def _register(name: str) -> None:
    def entry(
        pretrained: bool = False, *, num_classes: int = 1000, img_size: int | tuple[int, int] = 224, in_chans: int = 3, layer=None, ffn=None,
        position=None, drop_path_rate: float | None = None, options: dict | None = None, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None,
    ) -> Model:
        if pretrained:
            raise bad_value("pretrained", got=True, expected="False", do="Load trained weights with layerzoo.load(NAME); layerzoo.list_checkpoints() lists them.")
        return create_model(
            name, num_classes=num_classes, img_size=img_size, in_chans=in_chans, layer=layer, ffn=ffn, position=position,
            drop_path=drop_path_rate, options=options)

    entry.__name__ = entry.__qualname__ = f"layerzoo_{name}"
    entry.__doc__ = PRESETS[name].__doc__
    register_model(entry)


for _name in PRESETS:
    _register(_name)
