"""Find, describe and create layers by name."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.registry import LAYERS

if TYPE_CHECKING:
    from layerzoo.layers.base import Layer


def list_layers(family: str | None = None, causal: bool | None = None, needs_grid: bool | None = None) -> list[str]:
    """Names of layers, sorted; each argument that is given must match the card. Layers that are causal "always" are causal, without an option.

    Raises:
        ValueError: for an unknown family.
    """
    cards = [LAYERS.card(name) for name in LAYERS.names()]
    families = sorted({c.family for c in cards})
    if family is not None and family not in families:
        raise bad_value("family", got=repr(family), expected=f"one of {', '.join(families)}", do="Leave it out to list every layer.")
    wanted = {k: v for k, v in {"family": family, "causal": causal, "needs_grid": needs_grid}.items() if v is not None}
    return [c.name for c in cards if wanted.items() <= {"family": c.family, "causal": bool(c.causal), "needs_grid": c.needs_grid}.items()]


def layer_card(name: str) -> Card:
    """The card of a layer: title, paper, cost, symmetry, limit and so on. Raises ValueError for an unknown name."""
    return LAYERS.card(name)


def create_layer(name: str | dict | type, dim: int, **options: object) -> Layer:
    """A layer (B, C, H, W) -> (B, C, H, W) with C = dim; token layers also take (B, N, C).

    Args:
        name: a name of `list_layers()`, {"name": ..., option: ...}, or a class.
        dim: channels.
        **options: the layer's own, see its page or `layerzoo show NAME`.
    Raises:
        ValueError: for an unknown name or option, with the nearest known ones.
    """
    return LAYERS.create(name, dim, **options)


def register_layer(cls: type[Layer]) -> type[Layer]:
    """Class decorator: make a layer of your own usable by its name in snake case, in this process.

    Raises:
        ValueError: if the name is taken by another class.
    """
    return LAYERS.register(cls, re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower())
