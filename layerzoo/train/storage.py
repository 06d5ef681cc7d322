"""Faults of storage that say where, and how much is free there."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

_CODE = re.compile(r"os error (\d+)")


@contextmanager
def stored(path: Path, need: int = 0) -> Iterator[None]:
    """A block that writes `path`.

    Args:
        path: a file or folder, new or old.
        need: bytes it takes, 0 where that is not known.
    Raises:
        OSError: for one that the block raised, safetensors' too, with `path`; and bytes that are free there, if it is full.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        found = _CODE.search(str(error))
        number = error.errno if isinstance(error, OSError) else int(found[1]) if found else errno.EIO
        if number is None:
            raise
        said = os.strerror(number)
        home = path.parent if path.parent.is_dir() else None
        if home and number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            takes = f"{need / 1e6:,.0f} MB needed, " if need else ""
            said += f": {takes}{shutil.disk_usage(home).free / 1e6:,.0f} MB are free"
        raise OSError(number, said, str(path)) from error
