"""Every shipped recipe, broken in every place: each refusal names the line and the remedy."""

import random
import re
from collections.abc import Iterator

import pytest

from layerzoo.recipe import RecipeError, find_recipe, list_recipes, read_recipe
from layerzoo.strict_yaml import parse_option

KEY = re.compile(r"^( *)(\w+):(.*)$")
RECIPES = [name for name in list_recipes() if not name.startswith("lra/") or name.endswith("/mhsa")]  # those of the arena differ in one line
REQUIRED = {"meta", "meta.summary", "model", "model.name", "data", "data.source"}


def keys_of(lines: list[str]) -> list[tuple[int, str]]:
    """(line index, dotted key) of each key."""
    found, path = [], []
    for i, line in enumerate(lines):
        match = KEY.match(line)
        if match and not line.startswith("#"):
            path = path[: len(match[1]) // 2] + [match[2]]
            found.append((i, ".".join(path)))
    return found


def distinct_lines() -> Iterator[tuple[list[str], int, str]]:
    """(lines of a recipe, line index, dotted key), each key with each of its values once over all recipes."""
    seen = set()
    for name in RECIPES:
        lines = find_recipe(name)[0].read_text().splitlines()
        for i, key in keys_of(lines):
            if (key, lines[i]) not in seen:
                seen.add((key, lines[i]))
                yield lines, i, key


def misspell(word: str, distance: int, rng: random.Random) -> str:
    """`word` after so many deletions, insertions, substitutions or transpositions, with letters of the keyboard row by row."""
    for _ in range(distance):
        i, letter = rng.randrange(len(word)), rng.choice("abcdefghijklmnopqrstuvwxyz")
        word = rng.choice([
            word[:i] + word[i + 1:] or letter, word[:i] + letter + word[i:], word[:i] + letter + word[i + 1:],
            word[:i] + word[i + 1: i + 2] + word[i: i + 1] + word[i + 2:]])
    return word


def refusal(tmp_path, lines: list[str]) -> str:
    path = tmp_path / "r.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(RecipeError) as caught:
        read_recipe(str(path))
    assert caught.value.exit_code == 2 and len(str(caught.value).splitlines()) <= 6
    return str(caught.value).replace(str(path), "FILE")


def test_misspelt_keys_get_the_right_suggestion(tmp_path):
    rng, right, total = random.Random(0), {1: 0, 2: 0}, {1: 0, 2: 0}
    for name in RECIPES:
        lines = find_recipe(name)[0].read_text().splitlines()
        known = {key.rpartition(".")[2] for _, key in keys_of(lines)}
        for i, key in keys_of(lines):
            for distance in (1, 2) if not key.startswith("task.optimizer.options.") else ():  # the optimiser checks these
                last = key.rpartition(".")[2]
                wrong = misspell(last, distance, rng)
                if wrong in known | {"no", "on", "y", "n", "lr"} or len(last) <= distance:
                    continue
                message = refusal(tmp_path, [*lines[:i], lines[i].replace(f"{last}:", f"{wrong}:", 1), *lines[i + 1:]])
                total[distance] += 1
                assert message.startswith(f"FILE:{i + 1}: "), (key, wrong, message)
                right[distance] += f"do: Write {last}." in message
    assert total[1] + total[2] > 700
    assert right[1] >= 0.99 * total[1] and right[2] >= 0.95 * total[2], (right, total)


def test_dropped_keys(tmp_path):
    """Dropping a required key names it; dropping any other leaves its default."""
    for lines, i, key in distinct_lines():
        end = next((j for j in range(i + 1, len(lines)) if not lines[j].startswith(" " * (len(KEY.match(lines[i])[1]) + 1))), len(lines))
        rest = [*lines[:i], *lines[end:]]
        if key in REQUIRED:
            section = key.rpartition(".")[0]
            assert re.match(rf"FILE:\d+: ({key}\n  got: nothing|{section}\n  got: null)\n", refusal(tmp_path, rest))  # null: it stood alone
        elif key in ("trainer", "trainer.max_epochs") and any("warmup_epochs: 15" in line for line in lines):
            assert "task.schedule.warmup_epochs\n  got: 15.0\n  expected: at most trainer.max_epochs = 10" in refusal(tmp_path, _without_empty_sections(rest))
        elif key != "model.layer.name":
            (tmp_path / "r.yaml").write_text("\n".join(_without_empty_sections(rest)))
            read_recipe(str(tmp_path / "r.yaml"))


def _without_empty_sections(lines: list[str]) -> list[str]:
    kept: list[str] = []
    for i, line in enumerate(lines):
        match = KEY.match(line)
        following = lines[i + 1] if i + 1 < len(lines) else ""
        empty = match and not match[3].strip() and not following.startswith(match[1] + "  ")
        kept += [] if empty else [line]
    return kept if len(kept) == len(lines) else _without_empty_sections(kept)


MOVED = (
    ("max_epochs", "model", "trainer.max_epochs"), ("img_size", "model", "data.img_size"), ("batch_size", "trainer", "data.batch_size"))


def test_swapped_keys(tmp_path):
    """A key moved to another section is refused with the path it belongs to."""
    for name in RECIPES:
        lines = find_recipe(name)[0].read_text().splitlines()
        for key, wrong_section, right in MOVED:
            (i,) = [i for i, k in keys_of(lines) if k == right]
            at = lines.index(f"{wrong_section}:")
            moved = lines[:i] + lines[i + 1:]
            moved.insert(moved.index(f"{wrong_section}:") + 1, f"  {key}: 3")
            line = at + 2 - (i < at)
            assert refusal(tmp_path, moved).startswith(f"FILE:{line}: {wrong_section}.{key}\n  got: the unknown key '{key}'\n")
            assert f"do: Write {right}." in refusal(tmp_path, moved)


def test_wrong_types(tmp_path):
    """Each value replaced by one of another type is named with its line."""
    count = 0
    for lines, i, key in distinct_lines():
        value = KEY.match(lines[i])[3].strip()
        if not value or key.startswith("task.optimizer.options."):  # the optimiser checks these
            continue
        kind = type(parse_option("", value, ""))
        wrong = ("word" if kind is list else "[1, 2]", "{a: b}", "17" if kind is str else "word")[count % 3]
        message = refusal(tmp_path, [*lines[:i], f"{lines[i].partition(':')[0]}: {wrong}", *lines[i + 1:]])
        assert message.startswith(f"FILE:{i + 1}: {key}"), (key, wrong, message)
        assert "\n  expected: " in message and "\n  do: " in message
        count += 1
    assert count > 100


def test_duplicated_lines(tmp_path):
    for name in RECIPES:
        lines = find_recipe(name)[0].read_text().splitlines()
        for i, key in keys_of(lines):
            if KEY.match(lines[i])[3].strip():
                message = refusal(tmp_path, [*lines[: i + 1], lines[i], *lines[i + 1:]])
                assert message.startswith(f"FILE:{i + 2}: {key}\n  got: the key again, first on line {i + 1}\n")


def test_misspelt_names_get_the_right_suggestion(tmp_path):
    """Layers, models, parts and recipes: the right name is among the three."""
    from layerzoo.models.presets import list_models
    from layerzoo.registry import DOWNSAMPLES, FFNS, LAYERS, POSITIONS

    rooms = {
        "model.layer": LAYERS.names(), "model.ffn": FFNS.names(), "model.position": POSITIONS.names(), "model.name": list_models(),
        "model.downsample": DOWNSAMPLES.names()}
    rng, right, total = random.Random(0), 0, 0
    for key, names in rooms.items():
        for name in names:
            for distance in (1, 2):
                wrong = misspell(name, distance, rng)
                if wrong in names or len(name) <= 2 * distance or wrong == "none":
                    continue
                with pytest.raises(RecipeError, match="a known ") as caught:
                    read_recipe("quickstart", [f"{key}={wrong}"])
                total += 1
                right += name in re.search(r"such as (.*)", str(caught.value))[1].split(", ")
    known = RECIPES
    for name in known:
        wrong = misspell(name, 2, rng)
        if wrong in known:
            continue  # the second change took the first one back
        with pytest.raises(RecipeError, match="no such recipe") as caught:
            find_recipe(wrong)
        total += 1
        right += name in re.search(r"such as (.*)", str(caught.value))[1].split(", ")
    assert right >= 0.95 * total, f"{right} of {total}"
