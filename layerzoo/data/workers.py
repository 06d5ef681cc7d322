"""Worker processes that cannot be waited for in vain."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.process import BaseProcess

from torch.utils.data import DataLoader

TIMEOUT = 120  # seconds without anything from a worker


def cores() -> int:
    """Of this process, which may be fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def watched(loader: DataLoader, describe: Callable[[int], str]) -> Iterator:
    """What `loader` gives, in order.

    Args:
        loader: with a timeout.
        describe: says in words what result k is made of.
    Raises:
        RuntimeError: if a worker is dead or stuck, with what was waited for; a dead one may have been some results ahead.
    """
    results, count = iter(loader), 0
    while True:
        try:
            result = next(results)
        except StopIteration:
            return
        except RuntimeError as error:
            _wake(getattr(results, "_workers", ()))
            raise RuntimeError(
                f"while waiting for {describe(count)}: {error}. Look at these files and the next, or lower data.num_workers.") from error
        yield result
        count += 1


def _wake(workers: Iterable[BaseProcess]) -> None:
    """One that is stopped would not hear torch ask it to end, and Python would wait for it for ever."""
    for worker in workers:
        if hasattr(signal, "SIGCONT") and worker.is_alive():
            os.kill(worker.pid, signal.SIGCONT)
