"""Where layerzoo keeps what it can fetch or decode again. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$LAYERZOO_CACHE, else the user's cache folder by the XDG convention."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("LAYERZOO_CACHE") or Path(base, "layerzoo")).expanduser()
