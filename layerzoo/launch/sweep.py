"""Sweeps: runs one after another or as a job, and one table of them all. Runs that are done are not repeated."""

from __future__ import annotations

import hashlib
import statistics
import sys
import time
from pathlib import Path

from layerzoo.errors import Refusal
from layerzoo.launch.jobs import active
from layerzoo.launch.records import final_metrics, newest_run
from layerzoo.launch.runs import Runs
from layerzoo.recipe import run_base
from layerzoo.report.measured import write_rows

_POLL = 5  # seconds between two looks at a job
_SHOWN = "test/top1"


def train(runs: Runs) -> dict[Path, str]:
    """Train each run, or go on with it; returns what was wrong with those that failed."""
    from layerzoo.train.run import fit

    failed = {}
    for i, (recipe, entry) in enumerate(zip(runs.recipes, runs.entries), 1):
        print(f"sweep  {i}/{len(runs.recipes)}: {' '.join(entry)}", flush=True)
        try:
            fit(recipe, recipe_name=runs.name, resume="auto")
        except (FloatingPointError, Refusal) as error:
            print(error, file=sys.stderr, flush=True)
            failed[run_base(recipe, runs.name)] = " ".join(str(error).split())
    return failed


def wait(runs: Runs) -> None:
    """Until no job trains any of the runs."""
    bases = {run_base(recipe, runs.name).as_posix() for recipe in runs.recipes}
    while bases & active(runs.recipes[0].runs).keys():
        time.sleep(_POLL)


def gather(runs: Runs, failed: dict[Path, str]) -> list[dict]:
    """One row for each run: values of its keys, seed, state, metrics, run folder."""
    busy = active(runs.recipes[0].runs)
    rows, metrics = [], {}
    for recipe, entry in zip(runs.recipes, runs.entries):
        base = run_base(recipe, runs.name)
        metrics[base] = final_metrics(base) or {}
        undone = f"failed: {failed[base]}" if base in failed else f"job {busy[base.as_posix()]}" if base.as_posix() in busy else "not done"
        values = dict(o.partition("=")[::2] for o in entry)
        rows.append({**values, "seed": str(recipe.seed), "state": "done" if metrics[base] else undone, "base": base})
    names = sorted({name for found in metrics.values() for name in found})
    return [
        {k: v for k, v in row.items() if k != "base"} | {name: metrics[row["base"]].get(name, "") for name in names}
        | {"run": str(newest_run(row["base"]) or row["base"])} for row in rows]


def table(runs: Runs, rows: list[dict]) -> list[dict]:
    """One row for each combination of values other than seeds: runs that are done, their test accuracy's mean and standard deviation."""
    keys = [key for key in runs.axes if key != "seed"]
    found = []
    for values in dict.fromkeys(tuple(row[key] for key in keys) for row in rows):
        own = [row for row in rows if tuple(row[key] for key in keys) == values]
        scores = [row[_SHOWN] for row in own if row["state"] == "done"]
        mean = f"{statistics.fmean(scores):.4f}" if scores else ""
        spread = f" ± {statistics.stdev(scores):.4f}" if len(scores) > 1 else ""
        others = ", ".join(dict.fromkeys(row["state"].partition(":")[0] for row in own if row["state"] != "done"))
        found.append({**dict(zip(keys, values)), "done": f"{len(scores)} of {len(own)}", _SHOWN: mean + spread, "others": others})
    return found


def write(runs: Runs, rows: list[dict]) -> Path:
    """The rows as CSV beside the runs, in a file of this sweep's own that the next call of it renews."""
    words = "\n".join([*runs.common, *(" ".join(entry) for entry in runs.entries)])
    path = Path(runs.recipes[0].runs, runs.name, f"sweep-{hashlib.sha256(words.encode()).hexdigest()[:8]}.csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_rows(rows, path)
    return path
