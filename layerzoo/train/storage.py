"""Files on a disk: what they hold, whether there is room, and faults that say where, and how much is free there."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

_CODE = re.compile(r"os error (\d+)")


def entry(path: Path) -> dict:
    """The size and SHA-256 of a file, as a manifest states them."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}


def check_room(what: str, need: int, home: Path) -> None:
    """Raise OSError, before anything is written, if `home` has fewer bytes free than `need`; `what` begins the message, as in "the shards take"."""
    free = shutil.disk_usage(home).free
    if free < need:
        raise OSError(errno.ENOSPC, f"{what} {need / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free", str(home))


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
