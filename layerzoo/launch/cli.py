"""The verbs of launching: launch, sweep, jobs, logs, cancel."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
from collections.abc import Callable

from layerzoo.errors import bad_value
from layerzoo.launch import jobs, sweep
from layerzoo.launch.records import find_job
from layerzoo.launch.render import Machines
from layerzoo.launch.runs import Runs, parse_axis, read_runs
from layerzoo.quiet import quiet
from layerzoo.report.catalogue import print_table

_HELP = {
    "nodes": "machines; 1", "gpus_per_node": "GPUs of each, a rank for each; 0 = train on CPUs",
    "ranks_per_node": "ranks of each on CPUs; 1", "cpus_per_rank": "cores of each rank", "gpu_type": "such as h100",
    "partition": "of SLURM", "account": "of SLURM", "qos": "of SLURM", "constraint": "features of SLURM's nodes",
    "time": "limit, such as 4:00:00", "mem": "memory of each node, such as 64G", "image": "of Kubernetes"}
_NAMES = tuple(f"--{name.replace('_', '-')}" for name in _HELP)
OPTIONS = (*_NAMES, "--cluster", "--array", "--over", "--dry-run", "--wait")  # which are no keys of a recipe


def add_launch(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the verbs to a parser.

    Args:
        verb: adds one of a name, what it calls and its help.
    """
    launch = verb("launch", _launch, "train a recipe as a job: of SLURM, or of this machine in the background")
    launch.add_argument("--cluster", required=True, choices=jobs.RENDER, help="kubernetes and skypilot with --dry-run alone")
    array = "a run for each value, and for each combination if given again"
    launch.add_argument("--array", action="append", default=[], metavar="over=KEY:VALUE,...", help=array)
    over = verb("sweep", _sweep, "train a recipe with each combination of values, and one table of them; again, it goes on")
    values = "a key of the recipe and its values; any number of times"
    over.add_argument("--over", action="append", required=True, metavar="KEY=VALUE,...", help=values)
    over.add_argument("--cluster", choices=("slurm", "local"), help="as a job; else here, one after another")
    over.add_argument("--wait", action="store_true", help="for the job, to print the table at its end")
    for added in (launch, over):
        added.add_argument("recipe", help="a name of `layerzoo list recipes`, or a .yaml file")
        added.add_argument("--dry-run", action="store_true", help="print the script or manifest, and do nothing")
        for option, field in zip(_NAMES, dataclasses.fields(Machines), strict=True):
            kind, sign = (int, "N") if isinstance(field.default, int) else (str, "TEXT")
            added.add_argument(option, type=kind, default=field.default, metavar=sign, help=_HELP[field.name])
        added.add_argument("--section.key", dest="overrides", metavar="VALUE", help="any key of the recipe, such as --model.layer nystrom")
    listed = verb("jobs", _jobs, "jobs: state, step, last metric, run folder")
    logs = verb("logs", _logs, "what a job printed")
    cancel = verb("cancel", _cancel, "end a job")
    for added in (logs, cancel):
        added.add_argument("job", help="its id, or ID_NUMBER for one run of an array")
    for added in (listed, logs, cancel):
        added.add_argument("--runs", dest="overrides", metavar="PATH", help="the folder of the runs; runs")


def _launch(args: argparse.Namespace) -> None:
    axes = [parse_axis("--array", text.removeprefix("over="), ":") for text in args.array]
    runs, machines = read_runs(args.recipe, args.overrides, axes), _machines(args)
    if _shown(args, runs, machines):
        return
    if args.cluster not in ("slurm", "local"):
        expected = "--dry-run with it, since a manifest is yours to apply"
        raise bad_value("--cluster", got=args.cluster, expected=expected, do="Add --dry-run.")
    left, busy = jobs.todo(runs)
    for base, job in busy.items():
        got = f"a run that job {job} trains already, in {base}"
        raise bad_value("launch", got=got, expected="one job for a run", do=f"`layerzoo cancel {job}` ends it.")
    _submit(left, machines, args.cluster, len(runs.entries))


def _sweep(args: argparse.Namespace) -> int:
    runs, machines = read_runs(args.recipe, args.overrides, [parse_axis("--over", text, "=") for text in args.over]), _machines(args)
    if args.cluster is None:
        if given := [option for option in ("dry_run", "wait") if getattr(args, option)] + [f.name for f in _given(machines)]:
            option = f"--{given[0].replace('_', '-')}"
            raise bad_value(option, got="no --cluster", expected="--cluster slurm or local with it", do="Add one, or leave it out.")
    elif _shown(args, runs, machines):
        return 0
    failed = {}
    if args.cluster is None:
        _check(runs)
        failed = sweep.train(runs)
    else:
        _submit(jobs.todo(runs)[0], machines, args.cluster, len(runs.entries))
        if args.wait:
            sweep.wait(runs)
    found = sweep.gather(runs, failed)
    print_table(sweep.table(runs, found))
    print(sweep.write(runs, found))
    return 1 if failed else 0


def _machines(args: argparse.Namespace) -> Machines:
    return Machines(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Machines)})


def _given(machines: Machines) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(machines) if getattr(machines, field.name) != field.default]


def _shown(args: argparse.Namespace, runs: Runs, machines: Machines) -> bool:
    if args.dry_run:
        print(jobs.script(runs, machines, args.cluster)[1], end="")
    return args.dry_run


def _submit(left: Runs, machines: Machines, cluster: str, wanted: int) -> None:
    if not left.entries:
        print("nothing to submit: every run is done, or in a job")
        return
    jobs.script(left, machines, cluster)  # refused, if at all, before anything heavy is imported
    _check(left)
    job = jobs.submit(left, machines, cluster)
    count = len(left.entries)
    some = f"runs    {count}" if count == wanted else f"runs    {count} of {wanted}, the others being done or in a job"
    print(f"job     {job.id}\n{some}, each of {machines.nodes} x {machines.ranks} ranks")
    print(f"next    layerzoo jobs\n        layerzoo logs {job.id}\n        layerzoo cancel {job.id}")


def _check(runs: Runs) -> None:
    """What only constructors can refuse is refused here, not in a queue."""
    from layerzoo.cli import check_build

    quiet()
    for recipe in runs.recipes:
        check_build(recipe, runs.recipe)


def _jobs(args: argparse.Namespace) -> None:
    print_table(jobs.rows(_runs(args)))


def _logs(args: argparse.Namespace) -> None:
    folder, job, task = find_job(_runs(args), args.job)
    tasks = range(len(job.entries)) if task is None else [task]
    paths = [folder / "log.txt", *(folder / f"log-{i}.txt" for i in tasks)]
    for path in (p for p in paths if p.exists() and p.stat().st_size):
        if len(tasks) > 1:
            print(f"==> {path} <==", flush=True)
        with path.open(encoding="utf-8", errors="replace") as file:
            shutil.copyfileobj(file, sys.stdout)


def _cancel(args: argparse.Namespace) -> None:
    folder, job, task = find_job(_runs(args), args.job)
    jobs.cancel(folder, job, task)
    print(f"job     {args.job} is asked to end")


def _runs(args: argparse.Namespace) -> str:
    for override in args.overrides:
        key, _, value = override.partition("=")
        if key != "runs":
            raise bad_value(args.verb, got=f"--{key}", expected="--runs PATH alone", do=f"`layerzoo {args.verb} --help` lists its options.")
    return args.overrides[-1].partition("=")[2] if args.overrides else "runs"
