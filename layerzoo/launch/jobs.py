"""Jobs: submit, list, cancel, whatever the cluster."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from layerzoo.errors import bad_value
from layerzoo.launch import local, slurm
from layerzoo.launch.manifests import kubernetes, skypilot
from layerzoo.launch.records import Job, exit_code, final_metrics, job_folder, progress, read_jobs, write_job
from layerzoo.launch.render import Machines, Plan, local_script, slurm_script, title
from layerzoo.launch.runs import Runs
from layerzoo.recipe import run_base

RENDER = {"slurm": slurm_script, "local": local_script, "kubernetes": kubernetes, "skypilot": skypilot}
_LAID_OUT = ("trainer.num_nodes", "trainer.devices")
States = dict[tuple[str, int], str]


def script(runs: Runs, machines: Machines, cluster: str) -> tuple[Path, str]:
    """The folder of the job to come, and its script or manifest. Nothing is written.

    Raises:
        ValueError: for what the cluster cannot do, and for values that cannot stand in a script.
    """
    for override in (*runs.common, *(o for entry in runs.entries for o in entry)):
        key, _, value = override.partition("=")
        if key in _LAID_OUT:
            expected = "machines by --nodes, --gpus-per-node and --ranks-per-node"
            raise bad_value(f"--{key}", got=value, expected=expected, do="Leave it out.")
    folder, trainer = job_folder(runs.recipes[0].runs, title(runs.name)), runs.recipes[0].trainer
    free = [f"trainer.{key}" for key in ("accelerator", "strategy") if getattr(trainer, key) == "auto"]
    plan = Plan(runs.recipe, runs.name, free, runs.common, runs.entries, folder.as_posix(), os.getcwd(), sys.executable)
    return folder, RENDER[cluster](plan, machines)


def submit(runs: Runs, machines: Machines, cluster: str) -> Job:
    """Write the script, have it run, keep a record. What is refused leaves nothing behind.

    Raises:
        ValueError: as `script`, and where the cluster is not.
        SchedulerError: if the scheduler refuses.
    """
    folder, text = script(runs, machines, cluster)
    folder.mkdir(parents=True)
    try:
        (folder / "script.sh").write_text(text, encoding="utf-8")
        process = local.start(folder) if cluster == "local" else 0
        known = folder.name if process else slurm.submit(folder / "script.sh")
    except BaseException:
        shutil.rmtree(folder)
        raise
    bases = [run_base(recipe, runs.name).as_posix() for recipe in runs.recipes]
    job = Job(folder.name, known, cluster, runs.name, [[*runs.common, *entry] for entry in runs.entries], bases, process)
    write_job(folder, job)
    return job


def states(jobs: dict[Path, Job]) -> dict[Path, list[str]]:
    """Of each run of each job: pending, running, done, failed (CODE), cancelled, or another word of SLURM's."""
    known = slurm.states() if any(job.cluster == "slurm" for job in jobs.values()) else {}
    alive = {folder: local.is_alive(folder) for folder, job in jobs.items() if job.cluster == "local"}
    return {folder: [
        _local_state(folder, task, alive[folder]) if job.cluster == "local" else _slurm_state(folder, task, known.get((job.id, task)))
        for task in range(len(job.entries))] for folder, job in jobs.items()}


def active(runs: str) -> dict[str, str]:
    """Run folders that jobs train or will train, with the ids of these jobs."""
    jobs = read_jobs(runs)
    found = ((jobs[folder], words) for folder, words in states(jobs).items())
    return {base: job.id for job, words in found for base, word in zip(job.runs, words) if word in slurm.ACTIVE}


def todo(runs: Runs) -> tuple[Runs, dict[str, str]]:
    """Those of the runs that are neither done nor in a job, and the jobs of the rest by their run folders."""
    busy = active(runs.recipes[0].runs)
    bases = [run_base(recipe, runs.name) for recipe in runs.recipes]
    left = [i for i, base in enumerate(bases) if base.as_posix() not in busy and final_metrics(base) is None]
    chosen = Runs(runs.recipe, runs.name, runs.common, runs.axes, [runs.entries[i] for i in left], [runs.recipes[i] for i in left])
    return chosen, {base.as_posix(): busy[base.as_posix()] for base in bases if base.as_posix() in busy}


def rows(runs: str) -> list[dict]:
    """One row for each run of each job, oldest first."""
    jobs = read_jobs(runs)
    found = []
    for folder, words in states(jobs).items():
        job = jobs[folder]
        for task, (word, base) in enumerate(zip(words, job.runs)):
            name = job.id if len(words) == 1 else f"{job.id}_{task}"
            found.append({"job": name, "recipe": job.recipe, "state": word, **progress(Path(base))})
    return found


def cancel(folder: Path, job: Job, task: int | None) -> None:
    """End a job, or one task of an array.

    Raises:
        ValueError: for one task of a local job.
        SchedulerError: if the scheduler refuses.
    """
    if job.cluster == "slurm":
        slurm.cancel(job.id, task)
        return
    if task is not None and len(job.entries) > 1:
        do = f"`layerzoo cancel {job.id}` ends all of it."
        raise bad_value("job", got=f"{job.id}_{task}", expected="a whole job where it is local", do=do)
    (folder / "cancelled").touch()
    local.cancel(folder, job.process)


def _slurm_state(folder: Path, task: int, word: str | None) -> str:
    if word in slurm.ACTIVE:
        return word
    code = exit_code(folder, task)
    if code is not None:
        return _ended(code)
    return {None: "unknown", "completed": "done"}.get(word, word)


def _local_state(folder: Path, task: int, alive: bool) -> str:
    code = exit_code(folder, task)
    if code is not None:
        return _ended(code)
    if alive:
        return "running" if (folder / f"log-{task}.txt").exists() else "pending"
    return "cancelled" if (folder / "cancelled").exists() else "ended"


def _ended(code: int) -> str:
    return f"failed ({code})" if code else "done"
