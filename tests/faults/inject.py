"""Die before the k-th system call that changes or syncs a file, for every k: the windows that random kills miss."""

import builtins
import io
import os
from collections.abc import Callable

DIED = 9
_CALLS = ("mkdir", "open", "fsync", "rename", "replace", "unlink", "rmdir")


class _Halves:
    """A file written in two halves, so that a death between them leaves a torn one."""

    def __init__(self, file, count: Callable[[], None]):
        self.file, self.count = file, count

    def write(self, data: bytes) -> None:
        half = len(data) // 2
        for part in (data[:half], data[half:]):
            self.count()
            self.file.write(part)
            self.file.flush()

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self.file.close()

    def __getattr__(self, name: str):
        return getattr(self.file, name)


def dies_at(k: int, action: Callable[[], object]) -> bool:
    """Run `action` in a fork that dies before its k-th call. Returns whether it came that far."""
    child = os.fork()
    if child == 0:
        _arm(k)
        try:
            action()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, DIED), f"the action failed with status {status}"
    return status == DIED


def _arm(k: int) -> None:
    left = k

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os._exit(DIED)

    def counted(function: Callable) -> Callable:
        def call(*args, **kwargs):
            count()
            return function(*args, **kwargs)

        return call

    for name in _CALLS:
        setattr(os, name, counted(getattr(os, name)))
    create = builtins.open

    def open_halves(path, mode="r", *args, **kwargs):
        if not set(mode) & set("wax+"):
            return create(path, mode, *args, **kwargs)
        count()
        return _Halves(create(path, mode, *args, **kwargs), count)

    builtins.open = io.open = open_halves  # pathlib's is that of io
