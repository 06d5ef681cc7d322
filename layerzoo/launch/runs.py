"""The runs of a launch or a sweep: every combination of the values of its axes, each recipe read and checked."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from layerzoo.config import Recipe
from layerzoo.errors import bad_value
from layerzoo.launch.values import check_override
from layerzoo.recipe import find_recipe, read_recipe, run_base

Axis = tuple[str, list[str]]
_CLOSING = {"(": ")", "[": "]", "{": "}", '"': '"', "'": "'"}


@dataclass(frozen=True)
class Runs:
    """What is to be trained.

    Fields:
        recipe: as `layerzoo fit` takes it.
        name: of the recipe.
        common: overrides of every run, as "key=value".
        axes: keys that vary.
        entries: the overrides by which each run differs.
        recipes: of each run.
    """

    recipe: str
    name: str
    common: list[str]
    axes: list[str]
    entries: list[list[str]]
    recipes: list[Recipe]


def parse_axis(option: str, text: str, between: str) -> Axis:
    """A key and its values, from "model.layer=nystrom,performer"; commas in brackets and quotes part nothing.

    Args:
        option: for messages.
        text: as typed.
        between: the sign between key and values.
    Raises:
        ValueError: for anything else.
    """
    key, found, rest = text.partition(between)
    values = _parted(rest)
    if not found or not key or not all(values):
        example = f"model.layer{between}nystrom,performer"
        raise bad_value(option, got=repr(text), expected=f"a key and values such as {example}", do="Part values by commas, without blanks.")
    return key, values


def read_runs(recipe: str, common: list[str], axes: list[Axis]) -> Runs:
    """All combinations, the last axis varying fastest.

    Raises:
        RecipeError: for a recipe or a value that is wrong.
        ValueError: for values that hold a secret or do not print, keys given twice or that cannot vary, and combinations that are one run.
    """
    for override in (*common, *(f"{key}={value}" for key, values in axes for value in values)):
        check_override(override)  # before any message can repeat it
    keys = [key for key, _ in axes]
    for key in keys:
        if key == "runs" or key in {o.partition("=")[0] for o in common} or keys.count(key) > 1:
            got = "a folder for each run" if key == "runs" else "the key twice"
            raise bad_value(f"--{key}", got=got, expected="other keys to vary, each once", do="Leave one out.")
    entries = [[f"{key}={value}" for key, value in zip(keys, row)] for row in itertools.product(*(values for _, values in axes))]
    recipes, name = [read_recipe(recipe, [*common, *entry]) for entry in entries], find_recipe(recipe)[1]
    bases = [run_base(r, name) for r in recipes]
    for i, base in enumerate(bases):
        if base in bases[:i]:
            got = " and ".join(" ".join(entries[k]) for k in (bases.index(base), i))
            expected = "values that decide the result"
            raise bad_value("runs", got=f"{got}, which are one run", expected=expected, do="Leave one out.")
    return Runs(recipe, name, common, keys, entries, recipes)


def _parted(text: str) -> list[str]:
    parts, closing = [""], []
    for sign in text:
        if sign == "," and not closing:
            parts.append("")
            continue
        parts[-1] += sign
        if closing and sign == closing[-1]:
            closing.pop()
        elif sign in _CLOSING and not (closing and closing[-1] in "\"'"):
            closing.append(_CLOSING[sign])
    return parts
