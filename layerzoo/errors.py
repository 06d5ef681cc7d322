"""Every refusal says what, got, expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class Refusal(ValueError):
    """Input that is refused. The command line prints it without a traceback and ends with its exit code."""

    exit_code = 2


class DataRefused(Refusal):
    """Data that cannot be used: broken files, classes that do not match."""

    exit_code = 65


class SecurityRefused(Refusal):
    """What could run code or reach outside its folder, refused unopened."""

    exit_code = 77


class RankLost(RuntimeError):
    """Another process of a run ended or did not answer; its own message says why."""


class WorkerLost(RuntimeError):
    """A process that reads images died or got stuck."""


def bad_value(what: str, *, got: object, expected: str, do: str, kind: type[Refusal] = Refusal) -> Refusal:
    """A refusal in the one form the library uses. Names in it may be a stranger's: what no terminal should act on is escaped."""
    return kind("".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in f"{what}: got {got}, expected {expected}. {do}"))


def nearest(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """The `count` names most like `name`, best first."""
    key = name.lower()
    return sorted(names, key=lambda n: (-difflib.SequenceMatcher(None, key, n.lower()).ratio(), n))[:count]


def unknown_name(kind: str, name: object, names: Iterable[str], do: str) -> Refusal:
    """Refuse a name that is in no room, with the three nearest and the call that lists all."""
    close = ", ".join(nearest(str(name), names))
    known = f"a known name such as {close}" if close else "a known name, of which there is none yet"
    return bad_value(kind, got=repr(name), expected=known, do=f"{do} lists all.")
