"""Where layerzoo keeps what it can fetch or decode again. Imports no torch."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

_ELSEWHERE = Path("runs", ".cache")  # of the current folder, beside the records of jobs


def cache_folder() -> Path:
    """$LAYERZOO_CACHE, else the user's cache folder by the XDG convention; where none can be made, runs/.cache here.

    Warns:
        UserWarning: of the last.
    """
    if chosen := os.environ.get("LAYERZOO_CACHE"):
        return Path(chosen).expanduser()
    folder = Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache"), "layerzoo")
    if folder.is_absolute() and _can_be(folder):
        return folder
    warnings.warn(f"{folder} cannot be made; the cache is {_ELSEWHERE.absolute()}. LAYERZOO_CACHE names another.", stacklevel=1)
    return _ELSEWHERE.absolute()


def _can_be(folder: Path) -> bool:
    """Whether it is there, if only to be read, or its first ancestor that is there takes new folders."""
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    return there.is_dir() and (there == folder or os.access(there, os.W_OK | os.X_OK))
