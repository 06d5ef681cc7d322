"""What every preset stands in: the table of them, and the choice by image size."""

from __future__ import annotations

from collections.abc import Callable

PRESETS: dict[str, Callable[[int], dict]] = {}


def preset(make: Callable[[int], dict]) -> Callable[[int], dict]:
    """Enter a function of the image size under its name."""
    PRESETS[make.__name__] = make
    return make


def by_size(img_size: int, small: object, middle: object, large: object) -> object:
    """One of three settings: for CIFAR's 32 pixels, for 64, for ImageNet's 224."""
    return small if img_size < 48 else middle if img_size < 112 else large


def patches(img_size: int, norm: str | dict | bool = "layer") -> dict:
    """A stem of patches of 4 pixels, of 2 for small images."""
    return {"name": "patchify", "patch_size": by_size(img_size, 2, 2, 4), "norm": norm}


def overlapping(img_size: int, norm: str | bool, padding: int) -> dict:
    """A stem of 7x7 pixels at every fourth, of 3x3 at every other for small images."""
    small = {"name": "patchify", "patch_size": 2, "kernel_size": 3, "padding": 1, "norm": norm}
    return by_size(img_size, small, small, small | {"patch_size": 4, "kernel_size": 7, "padding": padding})
