"""Models by name, and back from their configuration."""

from __future__ import annotations

from layerzoo.errors import bad_value, unknown_name
from layerzoo.models.isotropic import Isotropic
from layerzoo.models.model import Model
from layerzoo.models.presets import PRESETS, list_models
from layerzoo.models.pyramid import Pyramid

_MODELS = {"isotropic": Isotropic, "pyramid": Pyramid}


def create_model(
    name: str, *, num_classes: int = 1000, img_size: int | tuple[int, int] = 224, in_chans: int = 3, layer: str | dict | type | list | None = None,
    ffn: str | dict | type | list | None = None, position: str | dict | None = None, stem: str | dict | None = None,
    downsample: str | dict | None = None, drop_path: float | None = None, layer_scale: float | None = None, options: dict | None = None,
) -> Model:
    """A preset, with any part of it changed.

    Args:
        name: one of `list_models()`.
        num_classes: logits; 0 = pooled features.
        img_size: side, or (H, W), in pixels; presets choose their stem by it.
        in_chans: channels of the image.
        layer: any layer in place of the preset's; a list gives one entry per stage of a pyramid.
        ffn: any per-position unit.
        position: encoding after the stem, or inside attention (rope2d, relative_bias).
        stem: stem name or dict.
        downsample: between the stages of a pyramid.
        drop_path: of the last block.
        layer_scale: initial residual scale.
        options: any other argument of the preset's model, such as depth, dim, depths, dims, head or block.
    Raises:
        ValueError: for unknown names and options, with the nearest known ones.
    """
    if name not in PRESETS:
        raise unknown_name("model", name, list_models(), "layerzoo.list_models()")
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    config = PRESETS[name](min(height, width))
    given = {"layer": layer, "ffn": ffn, "position": position, "stem": stem, "downsample": downsample}
    config |= {k: v for k, v in given.items() if v is not None} | (options or {})
    block = {k: v for k, v in {"drop_path": drop_path, "layer_scale": layer_scale}.items() if v is not None}
    config["block"] = config.get("block", {}) | block
    return build_model(config | {"input_size": (in_chans, height, width), "num_classes": num_classes})


def build_model(config: dict) -> Model:
    """The model whose `.config` this is.

    Raises:
        ValueError: for an unknown model or argument.
    """
    arguments = dict(config)
    kind = arguments.pop("model", None)
    if kind not in _MODELS:
        raise bad_value("model", got=repr(kind), expected=f"one of {', '.join(_MODELS)}", do="Pass the config of a layerzoo model.")
    known = _MODELS[kind].__init__.__kwdefaults__.keys() | {"dim", "depth", "dims", "depths", "layer"}
    for argument in arguments:
        if argument not in known:
            raise unknown_name(f"argument of {kind}", argument, known, f"help(layerzoo.models.{kind})")
    return _MODELS[kind](**arguments)
