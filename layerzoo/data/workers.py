"""Worker processes that cannot be waited for in vain."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import wait as wait_for
from multiprocessing.process import BaseProcess

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from layerzoo.errors import WorkerLost

TIMEOUT = 40.0  # seconds without an image from any worker; with the time to end them, less than a minute
_LOOKS = 8  # in that time: a process that was itself stopped for long has but one of them late


def cores() -> int:
    """Of this process, which may be fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pulse() -> Tensor:
    """A count that worker processes raise by one for each image, so that slow ones are told from stuck ones."""
    return torch.zeros((), dtype=torch.int64).share_memory_()


def watched(loader: DataLoader, done: Tensor, timeout: float, describe: Callable[[int], str]) -> Iterator:
    """What `loader` gives, in order.

    A thread ends workers that are stuck. torch's own timeout is of a whole result, however large, and does not hold where a worker is
    stopped between a result and its memory, which has to be asked for.

    Args:
        loader: with no timeout.
        done: the `pulse` of its workers.
        timeout: seconds without an image.
        describe: says in words what result k is made of.
    Raises:
        WorkerLost: if a worker is dead or stuck, with what was waited for; a dead one may have been some results ahead.
        RuntimeError: that a worker raised, likewise.
    """
    results = iter(loader)
    workers, wait, over, stuck = getattr(results, "_workers", ()), [0, False], threading.Event(), threading.Event()

    def watch() -> None:
        silent, seen = 0, None
        while not over.wait(timeout / _LOOKS):
            now = (*wait, int(done))
            silent, seen = (silent + 1 if wait[1] and now == seen else 0), now
            if silent == _LOOKS:
                stuck.set()
                return _end(workers)

    if workers:
        threading.Thread(target=watch, daemon=True).start()
    try:
        while True:
            wait[1] = True
            result = next(results, None)
            wait[1] = False
            if result is None:
                return
            yield result
            wait[0] += 1
    except (RuntimeError, OSError, EOFError) as error:
        if not workers:
            raise
        lost = "" if isinstance(error, RuntimeError) else _lost(workers)
        _end(workers)
        why = f"no image for {timeout:g} seconds" if stuck.is_set() else lost or str(error)
        kind = RuntimeError if "Original Traceback" in why else WorkerLost
        raise kind(f"while waiting for {describe(wait[0])}: {why}. Look at these files and the next, or lower data.num_workers.") from error
    finally:
        over.set()


def _lost(workers: Iterable[BaseProcess]) -> str:
    """Of a worker that died while its result was fetched, which the error of a socket does not say; nothing if none has."""
    over = wait_for([worker.sentinel for worker in workers], 1)  # the socket closes before
    return ", ".join(f"DataLoader worker (pid {worker.pid}) exited unexpectedly" for worker in workers if worker.sentinel in over)


def _end(workers: Iterable[BaseProcess]) -> None:
    """One that is stopped would not hear torch ask it to end, and Python would wait for it for ever."""
    for worker in workers:
        if worker.is_alive():
            worker.terminate()
            if hasattr(signal, "SIGCONT"):
                os.kill(worker.pid, signal.SIGCONT)
