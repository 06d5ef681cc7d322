"""SLURM by its own commands: sbatch, squeue, sacct, scancel."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from layerzoo.errors import bad_value
from layerzoo.launch.records import SchedulerError

ACTIVE = ("pending", "running", "suspended", "configuring", "completing", "requeued", "resizing", "stopped", "signaling", "stage_out")
_PATIENCE = 60  # seconds


def submit(script: Path) -> str:
    """The id of the new job.

    Raises:
        ValueError: where there is no sbatch.
        SchedulerError: if sbatch refuses.
    """
    if shutil.which("sbatch") is None:
        raise bad_value(
            "--cluster", got="slurm, but no sbatch on the PATH", expected="a machine that submits jobs to SLURM",
            do="Run this on the cluster's login node; --dry-run shows the script, --cluster local runs it here.")
    said = _ask(["sbatch", "--parsable", str(script)])
    found = re.fullmatch(r"(\d+)(;\S+)?", said.strip())
    if not found:
        raise SchedulerError(f"sbatch: got {said.strip()!r}, expected the number of a job. Look with squeue whether there is a new one.")
    return found[1]


def states() -> dict[tuple[str, int], str]:
    """What SLURM says of each of the user's jobs and tasks, such as ("12", 0): "running"; tasks of jobs without an array are 0.

    Of jobs that ended long ago sacct tells, where the cluster has it; nothing is said where neither answers.
    """
    found = {}
    asked = (
        ["sacct", "--parsable2", "--noheader", "--allocations", "--format=JobID,State", "--starttime=now-30days"],
        ["squeue", "--me", "--array", "--noheader", "--states=all", "--format=%F_%K|%T"])  # asked last, since it knows of requeues
    for command in asked:
        try:
            lines = _ask(command).splitlines() if shutil.which(command[0]) else []
        except SchedulerError:
            continue
        for line in lines:
            if known := re.fullmatch(r"(\d+)(?:_(?:(\d+)|N/A))?\|([A-Z_]+).*", line):
                found[known[1], int(known[2] or 0)] = known[3].lower()
    return found


def cancel(job: str, task: int | None) -> None:
    """End a job, or one of its tasks.

    Raises:
        SchedulerError: if scancel refuses.
    """
    _ask(["scancel", job if task is None else f"{job}_{task}"])


def _ask(command: list[str]) -> str:
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_PATIENCE)
    except FileNotFoundError:
        raise SchedulerError(f"{command[0]}: got no such command, expected it on the PATH. Run this on the cluster's login node.") from None
    except subprocess.TimeoutExpired:
        raise SchedulerError(f"{command[0]}: got no answer in {_PATIENCE} s, expected one. Ask again, or look with sinfo.") from None
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split()) or f"exit code {done.returncode}"
        raise SchedulerError(f"{command[0]}: got {said!r}, expected that SLURM takes it. Correct the option it names, or ask your cluster.")
    return done.stdout
