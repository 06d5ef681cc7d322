"""Randomness as a function: every draw is a hash of (key, index), so order of calls, ranks and resumption change nothing."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MASK = 2**64 - 1


class Draw(IntEnum):
    """What a draw is for: part of its key, so that no two uses share bits."""

    ORDER = 0
    TOP = 1
    LEFT = 2
    FLIP = 3
    HOLE_TOP = 4
    HOLE_LEFT = 5
    MIX = 6
    TRANSFORM = 7
    SPLIT = 8


def draw(index: np.ndarray, *key: int) -> np.ndarray:
    """64 random bits for each index: SplitMix64 (doi 10.1145/2660193.2660195), started where a hash of the key says.

    Args:
        index: (N,) whole numbers >= 0.
        key: whole numbers such as seed, epoch and a Draw.
    Returns:
        (N,) uint64.
    """
    state = np.zeros(1, np.uint64)
    for word in key:
        state = _mix((state ^ np.uint64(word & _MASK)) + _STEP)
    return _mix(state + (np.asarray(index).astype(np.uint64) + np.uint64(1)) * _STEP)


def integers(index: np.ndarray, below: int, *key: int) -> np.ndarray:
    """Whole numbers in [0, below) for each index, (N,) int64; `below` is at most 2**32."""
    high = draw(index, *key) >> np.uint64(32)
    return (high * np.uint64(below) >> np.uint64(32)).astype(np.int64)


def permutation(count: int, *key: int) -> np.ndarray:
    """The numbers below `count` in random order, (count,) int64."""
    return np.argsort(draw(np.arange(count), *key), kind="stable")


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
