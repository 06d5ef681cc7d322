"""The verb `study`: an experiment of the lecture, from one command to a folder that shows what came out."""

from __future__ import annotations

import argparse
import importlib
import shlex
from collections.abc import Callable
from pathlib import Path

from layerzoo.quiet import quiet
from layerzoo.report.catalogue import print_table
from layerzoo.report.measured import new_path
from layerzoo.study.runner import BASE, SCALES, plan, run

STUDIES = {"scores": "Scores", "positions": "Positions", "data_size": "DataSize", "window": "Window"}  # module: class


def add_study(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the verb to a parser.

    Args:
        verb: adds one of a name, what it calls and its help.
    """
    study = verb("study", study_into, "an experiment of the lecture, with seeds and spread: scores, positions, data_size or window")
    study.add_argument("name", choices=STUDIES)
    study.add_argument("curves", nargs="*", metavar="CURVE", help="what to compare, such as softmax relu; none = all")
    study.add_argument("--scale", choices=SCALES, default="smoke", help="smoke: minutes on a CPU, shows that it runs; small; full: for a GPU; smoke")
    study.add_argument("--seeds", type=int, default=3, help="runs of each case; 3")
    study.add_argument("--out", type=Path, help="a new folder for table, runs, picture and page; study-NAME-SCALE")


def study_into(args: argparse.Namespace) -> None:
    """Run a study and write its folder; runs lie in the recipes' `runs` and are not repeated."""
    quiet()
    folder = new_path(args.out or Path(f"study-{args.name}-{args.scale}"))
    study = getattr(importlib.import_module(f"layerzoo.study.{args.name}"), STUDIES[args.name])()
    plans = plan(study, args.curves, args.scale, args.seeds, args.overrides)
    print(f"study {study.name}: {len(plans)} cases, {args.seeds} seeds, at scale {args.scale} on {plans[0].recipes[0].data.source}", flush=True)
    from layerzoo.cli import check_build
    from layerzoo.study.writing import write

    for planned in {repr(p.recipes[0].model): p for p in plans}.values():
        check_build(planned.recipes[0], f"{BASE} of {planned.name}")
    runs = run(study, plans)
    words = [args.name, *args.curves, "--scale", args.scale, "--seeds", args.seeds]
    command = shlex.join(["layerzoo", "study", *map(str, words), *(w for o in args.overrides if not o.startswith("data.source=") for w in _option(o))])
    print_table(write(folder, study, args.scale, command, plans, runs))
    print("\n".join(str(folder / name) for name in (f"{args.name}.md", f"{args.name}.png", f"{args.name}.csv", "runs.csv")))


def _option(override: str) -> tuple[str, str]:
    key, _, value = override.partition("=")
    return f"--{key}", value
