"""The house rules."""

import ast
import doctest
import importlib
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from layerzoo.registry import DOWNSAMPLES, FFNS, LAYERS, POSITIONS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "layerzoo"
UNITS = ("layers", "ffn", "positions", "downsample")
SOURCES = {p.relative_to(ROOT).as_posix(): ast.parse(p.read_text(encoding="utf-8")) for p in sorted(PACKAGE.rglob("*.py"))}
PARTS = [(room, name) for room in (LAYERS, FFNS, POSITIONS, DOWNSAMPLES) for name in room.names()]
PROJECT_FILES = [
    p for place in ("layerzoo", "tests", "docs", "recipes", ".") for p in sorted((ROOT / place).glob("*" if place == "." else "**/*"))
    if p.suffix in (".py", ".md", ".yaml", ".yml", ".toml") and p.is_file()]


def room_of(path):
    return path.split("/")[1]


def nodes(*kinds, rooms=None):
    """(where, node) of every node of these kinds in the package, or in these rooms of it."""
    for path, tree in SOURCES.items():
        if rooms is None or room_of(path) in rooms:
            yield from ((f"{path}:{n.lineno}", n) for n in ast.walk(tree) if isinstance(n, kinds))


def test_files_are_short():
    lines = {p.relative_to(ROOT).as_posix(): len(p.read_text(encoding="utf-8").splitlines()) for p in PROJECT_FILES if p.suffix == ".py"}
    assert {p: n for p, n in lines.items() if n > 400} == {}
    assert {p.name: n for room, name in PARTS if (n := lines[(p := room.path(name)).relative_to(ROOT).as_posix()]) > 120} == {}


def test_constructors_and_functions_take_few_arguments():
    """Layers: eight options beside what their model gives them, unless the card says why more; anything else: twelve arguments."""
    many, excused = {}, [(room, name) for room, name in PARTS if "constructor" in room.card(name).cannot]
    free = {room.path(name).relative_to(ROOT).as_posix() for room, name in excused}
    for where, node in nodes(ast.FunctionDef):
        count = len([a for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs) if a.arg not in ("self", "cls")])
        if count > 12 and not (node.name == "__init__" and where.split(":")[0] in free):
            many[where] = count
    for room, name in PARTS:
        if len(room.options(name)) > 8 and (room, name) not in excused:
            many[name] = len(room.options(name))
    assert many == {}


def test_no_star_arguments():
    rooms = (*UNITS, "models", "tasks")
    assert [where for where, f in nodes(ast.FunctionDef, ast.Lambda, rooms=rooms) if f.args.vararg or f.args.kwarg] == []


def code_lines(path, tree):
    """(number, line without spaces) of the lines that are code: no blank lines, comments, docstrings, imports."""
    skipped = set()
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        if is_text or isinstance(node, (ast.Import, ast.ImportFrom)):
            skipped |= set(range(node.lineno, node.end_lineno + 1))
    for number, line in enumerate((ROOT / path).read_text(encoding="utf-8").splitlines(), 1):
        line = re.sub(r"\s+", "", line)
        if line and not line.startswith("#") and number not in skipped:
            yield number, line


def copied_runs(files, length=6):
    """Places of every run of `length` code lines that occurs more than once."""
    places = defaultdict(list)
    for path, tree in files.items():
        lines = list(code_lines(path, tree))
        for i in range(len(lines) - length + 1):
            places["\n".join(line for _, line in lines[i: i + length])].append(f"{path}:{lines[i][0]}")
    return [p for p in places.values() if len(p) > 1]


def test_nothing_is_copied():
    assert copied_runs({p: t for p, t in SOURCES.items() if room_of(p) in (*UNITS, "models", "tasks", "ops")}) == []


def test_copies_are_found():
    path = "layerzoo/layers/base.py"
    assert copied_runs({path: SOURCES[path], "layerzoo/../layerzoo/layers/base.py": SOURCES[path]})[0][0].startswith(path)


SECTIONS = ["**Paper**", "**Shape**", "**Cost**", "**Args**", "**Raises**", "**Example**", "**Differs from the paper**"]


@pytest.mark.parametrize("room, name", PARTS, ids=[name for _, name in PARTS])
def test_part_is_documented(room, name):
    cls, card = room.find(name), room.card(name)
    module = importlib.import_module(cls.__module__)
    text = cls.__doc__
    expected = SECTIONS if room in (LAYERS, FFNS) else [s for s in SECTIONS if s in ("**Paper**", "**Shape**", "**Cost**", "**Example**")]
    found = [s for s in SECTIONS if s in text]
    assert set(expected) <= set(found) and found == sorted(found, key=text.index), "sections, in this order"
    assert module.__doc__.strip().endswith(".") and "\n" not in module.__doc__.strip(), "one sentence above the module"
    paper = text[text.index("**Paper**"): text.index("**Shape**")]
    assert card.paper in paper
    assert [o for o in room.options(name) if f"\n        {o}: " not in text] == [], "options without a line under Args"
    results = doctest.testmod(module)
    assert results.attempted >= 1 and results.failed == 0


def literals(node):
    return [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]


def refusals():
    """(where, literals) of every `raise`, and of every refusal that a helper makes for one."""
    made = re.compile(r"(bad_value|unknown_name|\w*[Ee]rror|\w*Refused)$")
    for where, node in nodes(ast.Raise, ast.Return):
        if isinstance(node, ast.Raise) or (isinstance(node.value, ast.Call) and made.search(ast.unparse(node.value.func))):
            yield where, literals(node)


def test_every_message_is_asserted():
    """What tells a refusal from all others, its longest words of its own, stands in a test."""
    tests = [ast.parse(p.read_text(encoding="utf-8")) for p in sorted((ROOT / "tests").rglob("*.py"))]
    asserted = "\n".join(text for tree in tests for text in literals(tree))
    used = Counter(text for _, texts in refusals() for text in set(texts))
    missing = []
    for where, texts in refusals():
        long = [t for t in texts if len(t) >= 12] or sorted(texts, key=len)[-1:]
        own = [t for t in long if used[t] == 1] or long
        if own and not any(t in asserted for t in own):
            missing.append(f"{where}: {max(own, key=len)!r}")
    assert not missing, "\n".join(["raised, and asserted by no test:", *missing])


def test_refusals_have_one_form():
    plain = [where for where, n in nodes(ast.Raise) if n.exc and re.match(r"(ValueError|TypeError|Exception)\b", ast.unparse(n.exc))]
    assert plain == [], "raise bad_value(...) or unknown_name(...)"


BASE = {"card", "errors", "registry"}
PART_ROOMS = {*UNITS, "ops"}
ARROWS = {
    **{room: BASE | PART_ROOMS for room in UNITS}, "ops": {"ops", "errors"}, "card": set(), "errors": set(), "paths": set(),
    "registry": {"card", "errors"},
    "models": BASE | PART_ROOMS | {"models"},
    "tasks": BASE | PART_ROOMS | {"models", "tasks", "config"},
    "data": {"data", "config", "errors", "paths"},
    "checkpoint": BASE | {"models", "model_card", "foreign"}, "foreign": {"errors"}, "download": {"errors"},
    "hub": BASE | {"checkpoint", "models", "paths", "foreign", "download"},
}
HEAVY = {"lightning", "pytorch_lightning", "timm", "wandb", "torchvision", "torchmetrics", "matplotlib", "huggingface_hub", "jsonargparse"}


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{a.name}" for a in node.names)


def test_arrows_point_one_way():
    wrong = []
    for path, tree in SOURCES.items():
        room = room_of(path).removesuffix(".py")
        for name in imports(tree) if room in ARROWS else ():
            first, second = f"{name}.".split(".")[:2]
            if first == "layerzoo" and second not in {*ARROWS[room], "__version__"}:
                wrong.append(f"{path} imports {name}")
            if first in HEAVY and room in {*PART_ROOMS, *BASE, "models"}:
                wrong.append(f"{path} imports {name}")
    assert wrong == []


def test_nothing_below_the_tasks_imports_lightning():
    above = ("tasks", "train", "data", "launch", "cli", "recipe_check", "report")
    below = [p for p in SOURCES if room_of(p).removesuffix(".py") not in above]
    assert [p for p in below if any(n.split(".")[0] in ("lightning", "pytorch_lightning") for n in imports(SOURCES[p]))] == []


@pytest.mark.parametrize("statement", ["import layerzoo", "import layerzoo as lz; lz.list_layers(); lz.layer_card('mhsa')"])
def test_import_is_light(statement):
    heavy = sorted({"torch", "numpy", "yaml", *HEAVY} - {"lightning"})
    code = f"import sys; {statement}; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout.strip() == "[]"


def test_no_machine_in_project_files():
    machine = re.compile(r"(?<![\w./~-])/(?:work|root|home|mnt)/\w|\bissue[s]? #?\d|\blocalhost:\d")
    texts = {p.relative_to(ROOT): p.read_text(encoding="utf-8").splitlines() for p in PROJECT_FILES}
    assert [f"{p}:{i}" for p, lines in texts.items() for i, line in enumerate(lines, 1) if machine.search(line)] == []


def test_the_fields_words():
    """Classes are named by what they are in the field, without `Attn`, `Lit`, `Net` or a version."""
    odd = re.compile(r"Attn|^Lit[A-Z]|Net$|V\d$|^My")
    assert [where for where, n in nodes(ast.ClassDef) if odd.search(n.name)] == []
