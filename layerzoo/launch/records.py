"""Records of jobs below runs/.jobs, and how far the runs in them are. Imports nothing heavy."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from layerzoo.errors import Refusal, unknown_name

SHOWN = ("test/top1", "val/top1", "train/loss")  # the first of these that a run has is its last metric
_TAIL = 64 * 1024  # bytes of metrics.jsonl that are read


class SchedulerError(Refusal):
    """A scheduler that refuses or does not answer."""

    exit_code = 1


@dataclass(frozen=True)
class Job:
    """What was launched.

    Fields:
        key: the name of its folder.
        id: the scheduler's; of local jobs, the key.
        cluster: slurm or local.
        recipe: its name.
        entries: overrides of each run, as "key=value".
        runs: the run folder of each, which a later run of the same name ends in -1, -2 and so on.
        process: of local jobs, the process that leads the group.
    """

    key: str
    id: str
    cluster: str
    recipe: str
    entries: list[list[str]]
    runs: list[str]
    process: int = 0


def job_folder(runs: str, title: str) -> Path:
    """A folder that is free. None is made."""
    taken = [int(m[1]) for p in Path(runs, ".jobs").glob(f"{title}-*") if (m := re.fullmatch(rf"{re.escape(title)}-(\d+)", p.name))]
    return Path(runs, ".jobs", f"{title}-{max(taken, default=0) + 1}")


def write_job(folder: Path, job: Job) -> None:
    """Keep a job's record in its folder."""
    part = folder / ".job.json"
    part.write_text(json.dumps(asdict(job), indent=1), encoding="utf-8")
    os.replace(part, folder / "job.json")


def read_jobs(runs: str) -> dict[Path, Job]:
    """Every job by its folder, oldest first."""
    found = sorted(Path(runs, ".jobs").glob("*/job.json"), key=lambda p: (p.stat().st_mtime, p))
    return {path.parent: Job(**json.loads(path.read_text(encoding="utf-8"))) for path in found}


def find_job(runs: str, name: str) -> tuple[Path, Job, int | None]:
    """A job by its id or key, and the number of one of its runs where the name ends in _NUMBER.

    Raises:
        ValueError: if there is none.
    """
    jobs = read_jobs(runs)
    for folder, job in reversed(jobs.items()):
        for known in (job.id, job.key):
            task = name.removeprefix(f"{known}_")
            if name == known:
                return folder, job, None
            if task != name and task.isdecimal() and int(task) < len(job.entries):
                return folder, job, int(task)
    raise unknown_name("job", name, [known for job in jobs.values() for known in {job.id, job.key}], "`layerzoo jobs`")


def newest_run(base: Path) -> Path | None:
    """Of the folders `base`, `base`-1 and so on, the newest, which a run goes on from."""
    found = [base, *sorted(base.parent.glob(f"{base.name}-*"), key=lambda p: int(p.name[len(base.name) + 1:]))]
    return next((p for p in reversed(found) if p.is_dir()), None)


def final_metrics(base: Path) -> dict[str, float] | None:
    """Metrics of a run that is done, None of any other."""
    folder = newest_run(base)
    manifest = folder and folder / "checkpoint" / "manifest.json"
    return json.loads(manifest.read_text(encoding="utf-8"))["metrics"] if manifest and manifest.exists() else None


def progress(base: Path) -> dict[str, str]:
    """Last step, last metric and folder of a run."""
    folder = newest_run(base)
    rows = _tail(folder / "metrics.jsonl") if folder else []
    shown = next((f"{name} {row[name]:.4f}" for name in SHOWN for row in reversed(rows) if isinstance(row.get(name), float)), "")
    return {"step": str(rows[-1]["step"]) if rows else "", "metric": shown, "run": str(folder or base)}


def exit_code(folder: Path, task: int) -> int | None:
    """What the script of a job wrote of one of its runs when that had ended."""
    try:
        return int((folder / f"exit-{task}").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _tail(path: Path) -> list[dict]:
    """The last rows of a metrics.jsonl, less lines that are torn."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        cut = file.seek(0, os.SEEK_END) > _TAIL
        file.seek(-_TAIL if cut else 0, os.SEEK_END if cut else os.SEEK_SET)
        lines = file.read().decode(errors="replace").splitlines()[cut:]
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
