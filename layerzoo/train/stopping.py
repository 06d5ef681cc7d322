"""Asked to stop: a signal sets a flag, and all ranks agree on it at the end of a step."""

from __future__ import annotations

import signal
import threading
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist

SAVE = 1  # what ranks agree on: nothing (0), a save, or the exit code of a stop
_CODES = {name: code for name, code in (("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 143)) if hasattr(signal, name)}


class Signals:
    """While it is entered, SIGTERM and SIGUSR1 end the process with 143 and SIGINT with 130: at once, or where `deferred` says
    so at the end of a step. A second SIGINT ends it at once all the same.

    Fields:
        deferred: a loop looks at `code` and will stop by itself.
        code: of the exit that was asked for, or 0.
    """

    def __init__(self):
        self.deferred, self.code = False, 0

    def __enter__(self) -> Signals:
        self.before = {}
        if threading.current_thread() is threading.main_thread():  # nobody else may set handlers
            self.before = {name: signal.signal(getattr(signal, name), self._handle) for name in _CODES}
        return self

    def __exit__(self, *error: object) -> None:
        for name, handler in self.before.items():
            signal.signal(getattr(signal, name), handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        code = _CODES[signal.Signals(number).name]
        insists = self.code == code == 130
        if self.code and not insists:
            return  # it is stopping
        self.code = code
        if insists or not self.deferred:
            raise SystemExit(code)


class Agreement:
    """The largest of what the ranks said, the same on each; it costs no wait, since it is of the call before.

    Args:
        ranks: how many.
        seconds: to wait for the others.
    """

    def __init__(self, ranks: int, seconds: float):
        # on the CPU whatever the device, so that no step waits for a GPU
        self.group = dist.new_group(backend="gloo", timeout=timedelta(seconds=seconds)) if ranks > 1 else None
        self.said, self.work = torch.zeros(1, dtype=torch.int64), None

    def __call__(self, value: int) -> int:
        """Say a value; every rank must call as often."""
        if self.group is None:
            return value
        agreed = self.finish()
        self.said.fill_(value)
        self.work = dist.all_reduce(self.said, dist.ReduceOp.MAX, self.group, async_op=True)
        return agreed

    def least(self, value: int) -> int:
        """The smallest of the values of all ranks, waited for."""
        if self.group is None:
            return value
        least = torch.tensor([value])
        dist.all_reduce(least, dist.ReduceOp.MIN, self.group)
        return int(least)

    def finish(self) -> int:
        """What the last call agrees on."""
        if self.work is None:
            return 0
        self.work.wait()
        self.work = None
        return int(self.said)
