"""Every layer and ffn under every check, and none left out."""

from pathlib import Path

import pytest

import layerzoo
from layerzoo.registry import FFNS, LAYERS
from layerzoo.testing import CHECKS, check_layer

NAMES = [*LAYERS.names(), *FFNS.names()]
SLOW = ("compile", "export", "cost")  # a large part of the time: left to `pytest -m slow`, which CI runs too


@pytest.mark.parametrize("check", [pytest.param(check, marks=[pytest.mark.slow] * (check in SLOW)) for check in CHECKS])
@pytest.mark.parametrize("name", NAMES)
def test_layer(name, check):
    (result,) = check_layer(name, checks=[check])
    assert (result.name, result.ok) == (check, True) and result.detail


def test_every_file_is_covered():
    root = Path(layerzoo.__file__).parent
    files = {p.stem for room in ("layers", "ffn") for p in (root / room).rglob("*.py")} - {"__init__", "base"}
    assert files == set(NAMES) and len(NAMES) == len(set(NAMES))
