"""Every refusal says what, got, expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def bad_value(what: str, *, got: object, expected: str, do: str) -> ValueError:
    """A ValueError in the one form the library uses."""
    return ValueError(f"{what}: got {got}, expected {expected}. {do}")


def nearest(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """The `count` names most like `name`, best first."""
    key = name.lower()
    return sorted(names, key=lambda n: (-difflib.SequenceMatcher(None, key, n.lower()).ratio(), n))[:count]


def unknown_name(kind: str, name: object, names: Iterable[str], do: str) -> ValueError:
    """Refuse a name that is in no room, with the three nearest and the call that lists all."""
    close = ", ".join(nearest(str(name), names))
    return bad_value(kind, got=repr(name), expected=f"a known name such as {close}", do=f"{do} lists all.")
