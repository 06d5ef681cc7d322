"""Recipes: find, read, override, resolve, save. One YAML file = one result."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from pathlib import Path

from layerzoo import strict_yaml
from layerzoo.config import Recipe
from layerzoo.errors import nearest
from layerzoo.recipe_check import SPECS, check
from layerzoo.strict_yaml import RecipeError, dotted

_ROOT = Path(__file__).parent
_CHECKOUT = (_ROOT.parent / "pyproject.toml").is_file()
SHIPPED_RECIPES = _ROOT.parent / "recipes" if _CHECKOUT else _ROOT / "_recipes"
NOT_IN_HASH = (
    "meta", "logging", "runs", "seed", "data.num_workers", "data.worker_timeout", "data.eval_batch_size", "data.cache", "data.max_unreadable",
    "trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.log_every_n_steps", "trainer.check_val_every_n_epoch",
    "trainer.save_minutes", "trainer.rank_timeout")  # how it is run, not what


def list_recipes() -> list[str]:
    """Names of the recipes in ./recipes and of those that come with layerzoo, sorted, such as "cifar10/resnet18"."""
    return sorted(_recipes())


def is_recipe(text: str) -> bool:
    """Whether `text` names a recipe or a YAML file, be it there or not."""
    return text in _recipes() or text.endswith((".yaml", ".yml"))


def find_recipe(path_or_name: str) -> tuple[Path, str]:
    """The file of a recipe, and its name: that of the listing, or the file's own.

    Args:
        path_or_name: a name of `list_recipes()`, or the path of a .yaml file.
    Raises:
        RecipeError: if there is none.
    """
    known = _recipes()
    if path_or_name in known:
        return known[path_or_name], path_or_name
    path = Path(path_or_name)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path, next((n for n, p in known.items() if p.resolve() == path.resolve()), path.stem)
    close = ", ".join(nearest(path_or_name.removesuffix(".yaml").removeprefix("recipes/"), known))
    raise RecipeError(
        path_or_name, "recipe", got="no such recipe", expected=f"the path of a .yaml file, or a name such as {close}",
        do="`layerzoo list recipes` lists all.")


def read_recipe(path_or_name: str, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """A checked recipe: defaults, then the file, then the overrides.

    Args:
        path_or_name: a name of `list_recipes()`, or the path of a .yaml file.
        overrides: "key=value" such as "model.layer=nystrom"; values as in YAML, lists replace.
    Raises:
        RecipeError: for whatever is wrong, with its line and the nearest right spelling; code is never run.
    """
    values, where = strict_yaml.read(find_recipe(path_or_name)[0])
    for override in overrides:
        _override(values, where, override)
    return check(values, where)


def resolved(recipe: Recipe) -> dict:
    """Every option with its value, as plain values."""
    return dataclasses.asdict(recipe)


def sha256(recipe: Recipe) -> str:
    """Hash of what decides the result, less NOT_IN_HASH: the same on any machine, for any number of devices and any seed."""
    values = resolved(recipe)
    for key in NOT_IN_HASH:
        *sections, last = key.split(".")
        section = values
        for part in sections:
            section = section[part]
        del section[last]
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()


def save(recipe: Recipe, path: str | Path) -> None:
    """Write the resolved recipe, which `read_recipe` gives back, less `runs`: where runs lie is the reader's choice."""
    values = {key: value for key, value in resolved(recipe).items() if key != "runs"}
    Path(path).write_text(strict_yaml.write(values), encoding="utf-8")


def _recipes() -> dict[str, Path]:
    folders = (SHIPPED_RECIPES, Path("recipes"))  # the later wins
    return {p.relative_to(folder).with_suffix("").as_posix(): p for folder in folders for p in folder.rglob("*.yaml")}


def _override(values: dict, where: dict[tuple, str], override: str) -> None:
    key, equals, text = override.partition("=")
    path = tuple(key.split("."))
    at = "command line"
    if not equals or not all(path):
        raise RecipeError(at, key, got=override, expected="key=value", do="Write for example --model.layer nystrom.")
    section = values
    for i, part in enumerate(path[:-1]):
        if part not in section:
            section[part], where[path[: i + 1]] = {}, at
        child = section[part]
        if isinstance(child, str) and path[:i] == ("model",) and part in SPECS:
            child = section[part] = {"name": child}  # an option joins the name that stands there
        if not isinstance(child, dict):
            raise RecipeError(
                at, key, got=f"{dotted(path[: i + 1])} is {json.dumps(child)}", expected=f"a section that can hold {path[-1]}",
                do=f"Give the whole value: --{dotted(path[: i + 1])} '{{...}}'.")
        section = child
    section[path[-1]] = text if _field_type(path) is str else strict_yaml.parse_option(key, text, at)
    for old in [p for p in where if p[: len(path)] == path]:
        del where[old]
    where[path] = at


def _field_type(path: tuple) -> object:
    """The type of a field of Recipe; None if there is no such field. Text fields take the command line's words as they are."""
    hint: object = Recipe
    for part in path:
        hint = typing.get_type_hints(hint).get(part) if dataclasses.is_dataclass(hint) else None
    return hint


def run_base(recipe: Recipe, name: str) -> Path:
    """The folder of a recipe's first run with its seed; later ones end in -1, -2 and so on."""
    return Path(recipe.runs, name, f"{sha256(recipe)[:8]}-s{recipe.seed}")
