"""The folder of a study: a table, its runs, a picture, and a page that says what they show."""

from __future__ import annotations

from pathlib import Path

from layerzoo.report.catalogue import markdown
from layerzoo.report.measured import write_rows
from layerzoo.study.base import Study
from layerzoo.study.runner import BASE, Plan, gather

_SMOKE = (
    "**This is the smoke scale: tiny models, little data, an epoch or two. It shows that the study runs; what it would find, it does not show.**")


def write(folder: Path, study: Study, scale: str, command: str, plans: list[Plan], runs: list[dict]) -> list[dict]:
    """NAME.csv (a row per case), runs.csv (a row per run), NAME.png and NAME.md in a new folder.

    Returns:
        The rows of NAME.csv, as text.
    """
    from matplotlib.figure import Figure

    rows = gather(plans, runs)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = [{key: shown(row.get(key)) for key in columns} for row in rows]
    folder.mkdir()
    write_rows(table, folder / f"{study.name}.csv")
    every = list(dict.fromkeys(key for row in runs for key in row))
    write_rows([{key: shown(row.get(key)) for key in every} for row in runs], folder / "runs.csv")
    figure = Figure(layout="constrained")
    study.draw(figure, rows)
    figure.savefig(folder / f"{study.name}.png", dpi=110)
    (folder / f"{study.name}.md").write_text(page(study, scale, command, plans, rows, table), encoding="utf-8")
    return table


def page(study: Study, scale: str, command: str, plans: list[Plan], rows: list[dict], table: list[dict]) -> str:
    """The page: question, how it was run, picture, what was found, table."""
    recipe, seeds = plans[0].recipes[0], len(plans[0].recipes)
    spread = f"Mean and standard deviation (sd) over {seeds} seeds" if seeds > 1 else "One seed, so no spread is known"
    how = (
        f"`{command}`: {len(plans)} cases of the recipe `{BASE}` without mixup and CutMix, at scale {scale}, on images of {recipe.data.img_size} x "
        f"{recipe.data.img_size} pixels from `{recipe.data.source.partition(':')[0]}`. {spread}; final weights on the test images, by which nothing was chosen.")
    return "\n\n".join([
        f"# {study.question}", *([_SMOKE] if scale == "smoke" else []), how, f"![{study.question}]({study.name}.png)", study.conclude(rows), markdown(table)]) + "\n"


def shown(value: object) -> str:
    """A value of a table: four digits of a number, one number after the other where there is one for each layer."""
    if isinstance(value, list):
        return " ".join(map(shown, value))
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
