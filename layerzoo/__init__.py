"""layerzoo: interchangeable vision layers, the models they compose, and the recipes and checkpoints to try them."""

import importlib

__version__ = "0.1.0"

_API = {
    "list_layers": "layerzoo.api", "layer_card": "layerzoo.api", "create_layer": "layerzoo.api", "register_layer": "layerzoo.api",
    "create_block": "layerzoo.models.block", "create_model": "layerzoo.models", "build_model": "layerzoo.models",
    "list_models": "layerzoo.models.presets", "list_recipes": "layerzoo.recipe", "list_checkpoints": "layerzoo.hub", "load": "layerzoo.hub",
    "cost": "layerzoo.report.cost", "check_layer": "layerzoo.testing", "Card": "layerzoo.card",
    "Layer": "layerzoo.layers.base", "TokenLayer": "layerzoo.layers.base", "HeadsLayer": "layerzoo.layers.base",
    "swap": "layerzoo.models.surgery", "fuse": "layerzoo.models.fusion", "conv_to_attention": "layerzoo.models.convert", "attention_to_conv": "layerzoo.models.convert",
    "from_timm": "layerzoo.models.port",
    "collect_auxiliary": "layerzoo.ops.auxiliary", "effective_matrix": "layerzoo.report.pattern", "mixing": "layerzoo.report.pattern", "Mixing": "layerzoo.report.pattern",
}  # name: module, so that `import layerzoo` loads nothing until a name is used
__all__ = sorted(_API)


def __getattr__(name: str):
    if name not in _API:
        raise AttributeError(f"module 'layerzoo' has no attribute {name!r}; dir(layerzoo) lists all")
    return getattr(importlib.import_module(_API[name]), name)


def __dir__():
    return [*__all__, "__version__"]
