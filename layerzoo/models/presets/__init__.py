"""Presets: the arguments of known models, chosen by image size. Imports no torch, so that listing is quick."""

from __future__ import annotations

from layerzoo.models.presets import micro, published  # noqa: F401  they enter their presets in the table
from layerzoo.models.presets.base import PRESETS


def list_models() -> list[str]:
    """Names of the presets, sorted."""
    return sorted(PRESETS)
