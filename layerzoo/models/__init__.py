"""Models: stem + stages + head, from any layers."""


def __getattr__(name: str):
    if name not in ("create_model", "build_model"):
        raise AttributeError(f"module 'layerzoo.models' has no attribute {name!r}")
    from layerzoo.models import create  # torch loads here, so that listing presets stays quick

    return getattr(create, name)
