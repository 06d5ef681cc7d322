"""What there is: rows of layers, models, recipes and checkpoints, and what each costs. Listing imports nothing heavy."""

from __future__ import annotations

import inspect
import sys

from layerzoo.api import list_layers
from layerzoo.config import MetaConfig
from layerzoo.errors import bad_value
from layerzoo.models.presets import PRESETS, list_models
from layerzoo.recipe import find_recipe, is_recipe, list_recipes, read_recipe, resolved
from layerzoo.registry import FFNS, LAYERS
from layerzoo.report.measured import exponents, recorded
from layerzoo.strict_yaml import read

KINDS = ("layers", "models", "recipes", "checkpoints")


def rows(kind: str, family: str | None = None) -> list[dict]:
    """One row for each name, of plain values.

    Args:
        kind: one of KINDS.
        family: of layers only.
    Raises:
        ValueError: for a family that there is not, or of anything but layers.
    """
    if family is not None and kind != "layers":
        raise bad_value("--family", got=f"{family} of {kind}", expected="layers, which alone have families", do="Leave it out.")
    if kind == "layers":
        return [_layer(name) for name in list_layers(family)]
    return {"models": _models, "recipes": _recipes, "checkpoints": _checkpoints}[kind]()


def costs(name: str, sizes: list[int] | None = None, num_classes: int = 10, swap: str | None = None) -> list[dict]:
    """One row for each size, of a layer or ffn at the base size of its card, of a model, or of a recipe's model.

    Args:
        name: of any of these.
        sizes: sides of the map of a layer, of the image of a model; None = three usual ones, or the recipe's own.
        num_classes: of models.
        swap: a layer that `lz.swap` puts into the model, each cell then being before -> after; None = none.
    Raises:
        ValueError: for a swap into anything but a model or a recipe's, and as `lz.swap`.
    """
    from layerzoo.models import create_model
    from layerzoo.models import surgery
    from layerzoo.report.cost import cost

    if swap and name not in PRESETS and not is_recipe(name):
        raise bad_value("--swap", got=f"{swap} into {name}", expected="a model or a recipe to put it into", do="`layerzoo list models` lists them.")
    room = next((r for r in (LAYERS, FFNS) if name in r.names()), None)
    if room is not None:
        options = {k: v for k, v in room.card(name).sizes["base"].items() if k != "grid"}
        chans, usual = options.pop("dim"), [8, 16, 32]
    else:
        recipe = None if name in PRESETS else read_recipe(name)
        options = {"name": name} if recipe is None else resolved(recipe)["model"]
        chans, usual = 3, [32, 64, 224] if recipe is None else [recipe.data.img_size]
    found = []
    for size in sizes or usual:
        if room is not None:
            module = room.create({"name": name, **options}, chans, defaults={"grid": (size, size)})
        else:
            module = create_model(**options, num_classes=num_classes, img_size=size)
        states = [cost(module, (1, chans, size, size))]
        if swap:
            surgery.swap(module, swap)
            states.append(cost(module, (1, chans, size, size)))
        found.append({
            "input": f"{chans} x {size} x {size}", "parameters": _change([c.params for c in states], ",.0f"),
            "MFLOP": _change([c.flops / 1e6 for c in states], ",.2f"),
            "activations": _change([c.activation_bytes / 2**20 for c in states], ",.2f", " MiB")})
    return found


def _change(values: list[float], form: str, unit: str = "") -> str:
    """One value, or before -> after and their ratio."""
    ratio = f" ({values[-1] / values[0]:.2f}x)" if len(values) > 1 else ""
    return " -> ".join(f"{value:{form}}" for value in values) + unit + ratio


def print_table(found: list[dict]) -> None:
    """Rows as a table, as wide as the terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(*(found[0] if found else ["none"]), box=SIMPLE_HEAD)
    for row in found:
        table.add_row(*({True: "yes", False: "no"}[v] if isinstance(v, bool) else str(v) for v in row.values()))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def markdown(found: list[dict]) -> str:
    """Rows of text as a table of Markdown."""
    lines = [list(found[0]), ["---"] * len(found[0]), *(row.values() for row in found)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _layer(name: str) -> dict:
    c, own = LAYERS.card(name), recorded().get(name, [])
    return {
        "name": name, "family": c.family, "title": c.title, "paper": c.paper, "year": c.year, "survey": c.survey, "time": f"N^{c.cost[0]:g}",
        "memory": f"N^{c.cost[1]:g}", "measured": " ".join(f"N^{e:.2f}" for e in exponents(own)) if own else "",
        "parameters": f"{own[0].parameters:,}" if own else "", "causal": c.causal, "mask": c.mask, "needs_grid": c.needs_grid,
        "symmetry": c.symmetry}


def _models() -> list[dict]:
    return [{"name": name, "summary": inspect.getdoc(PRESETS[name]).partition("\n")[0]} for name in list_models()]


def _recipes() -> list[dict]:
    """Files are read but not checked: a recipe that will not run is listed all the same."""
    found = []
    for name in list_recipes():
        values = read(find_recipe(name)[0])[0]
        meta, model, data = (v if isinstance(v := values.get(key), dict) else {} for key in ("meta", "model", "data"))
        claims = {key: meta.get(key, getattr(MetaConfig, key)) for key in ("hardware", "time", "accuracy")}
        found.append({"name": name, "model": model.get("name", ""), "data": data.get("source", "")} | claims)
    return found


def _checkpoints() -> list[dict]:
    from layerzoo.hub import list_checkpoints, published

    entries = {name: published(name) for name in list_checkpoints()}
    return [
        {"name": name, "recipe": e["recipe"], "top-1": round(e["metrics"]["test/top1"], 4) if "test/top1" in e["metrics"] else "", "bytes": e["bytes"],
         "sha256": e["manifest_sha256"][:16]} for name, e in entries.items()]
