"""Worker processes that cannot be waited for in vain."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

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
            All workers are killed then, since Python would wait at its end for one that is stopped.
    """
    results, count = iter(loader), 0
    while True:
        try:
            result = next(results)
        except StopIteration:
            return
        except RuntimeError as error:
            for worker in getattr(results, "_workers", ()):
                worker.kill()
            raise RuntimeError(
                f"while waiting for {describe(count)}: {error}. Look at these files and the next, or lower data.num_workers.") from error
        yield result
        count += 1
