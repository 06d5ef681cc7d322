"""Jobs that are processes of this machine: started in the background, asked about and ended like those of a cluster."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
from pathlib import Path


def start(folder: Path) -> int:
    """Run script.sh of a job's folder in a group of processes of its own, whose leader is returned. They hold a lock while they live."""
    with (folder / "lock").open("w") as lock, (folder / "log.txt").open("w") as log:
        fcntl.flock(lock, fcntl.LOCK_EX)
        started = subprocess.Popen(
            ["bash", str(folder / "script.sh")], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            pass_fds=[lock.fileno()])
    return started.pid


def is_alive(folder: Path) -> bool:
    """Whether a process of the job still runs; unlike a process id, a lock is never another's."""
    try:
        with (folder / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared, so that two who ask do not see each other
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def cancel(folder: Path, process: int) -> None:
    """Ask the processes of a job to end, which they do after saving."""
    if is_alive(folder):
        os.killpg(process, signal.SIGTERM)
