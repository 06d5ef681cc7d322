"""The folder is the registry: one file per layer, ffn, position or downsample; the subfolder is the family."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
from functools import cached_property
from pathlib import Path

from layerzoo.card import Card
from layerzoo.errors import bad_value, unknown_name

_ROOT = Path(__file__).parent


class Room:
    """The modules of one folder, by name. Names and cards are read from source text, so listing imports nothing heavy."""

    def __init__(self, folder: str, listing: str):
        self.folder, self.listing = folder, listing
        self.registered: dict[str, type] = {}

    @cached_property
    def files(self) -> dict[str, Path]:
        found = sorted((_ROOT / self.folder).rglob("*.py"))
        return {p.stem: p for p in found if p.stem not in ("__init__", "base")}

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted({*self.files, *self.registered})

    def path(self, name: str) -> Path:
        """The source file of `name`. Raises ValueError for an unknown name."""
        if name not in self.files:
            raise unknown_name(f"{self.folder} name", name, self.names(), self.listing)
        return self.files[name]

    def card(self, name: str) -> Card:
        """The card of `name`. Raises ValueError for an unknown name."""
        if name in self.registered:
            return dataclasses.replace(self.registered[name].card, name=name, family="registered")
        path = self.path(name)
        family = path.parent.name if path.parent.name != self.folder else ""
        return dataclasses.replace(_read_card(path), name=name, family=family)

    def options(self, name: str) -> dict[str, str]:
        """The options of `name` and their types as written, without importing it. Raises ValueError for an unknown name."""
        if name in self.registered:
            taken = inspect.signature(self.registered[name]).parameters
            found = {option: p.annotation for option, p in taken.items() if option not in _POSITIONAL}
            return {option: a if isinstance(a, str) else inspect.formatannotation(a) for option, a in found.items()}
        return read_options(self.path(name))

    def find(self, name: str) -> type:
        """The class of `name`. Raises ValueError for an unknown name."""
        if name in self.registered:
            return self.registered[name]
        dotted = ".".join(("layerzoo", *self.path(name).relative_to(_ROOT).with_suffix("").parts))
        module = importlib.import_module(dotted)
        return next(c for c in vars(module).values() if isinstance(c, type) and c.__module__ == dotted and "card" in vars(c))

    def register(self, cls: type, name: str) -> type:
        """Make a class of your own usable by name in this process."""
        if name in self.files or self.registered.get(name, cls) is not cls:
            raise bad_value(f"{self.folder} name", got=repr(name), expected="a name not yet taken", do="Choose another name.")
        self.registered[name] = cls
        return cls

    def create(self, spec: str | dict | type, *args, defaults: dict | None = None, **options):
        """Build from a name, a {"name": ..., option: ...} dict or a class; `defaults` apply where the class takes them."""
        spec = {"name": spec} if not isinstance(spec, dict) else dict(spec)
        if "name" not in spec:
            raise bad_value(f"{self.folder} spec", got=spec, expected="a dict with the key 'name'", do="Add name: <one of the listed>.")
        name = spec.pop("name")
        cls = name if isinstance(name, type) else self.find(name)
        options = {**spec, **options}
        taken = inspect.signature(cls).parameters
        for option in options:
            if option not in taken:
                raise unknown_name(f"option of {cls.__name__}", option, taken, f"help(layerzoo.{self.folder}) and layerzoo show {name}")
        fill = {k: v for k, v in (defaults or {}).items() if k in taken and k not in options}
        return cls(*args, **fill, **options)


_POSITIONAL = ("self", "dim", "dim_in", "dim_out", "in_chans")  # given by the model that holds the part


def read_options(path: Path, name: str = "") -> dict[str, str]:
    """The constructor's options and their types as written, of the class `name` (else the one with a card) in a file of this package."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    cls = classes[name] if name else _find_card(tree, path)[0]
    for line in cls.body:
        if isinstance(line, ast.FunctionDef) and line.name == "__init__":
            return {a.arg: ast.unparse(a.annotation) for a in (*line.args.args, *line.args.kwonlyargs) if a.arg not in _POSITIONAL}
    base = ast.unparse(cls.bases[0]) if cls.bases else ""
    if base in classes:
        return read_options(path, base)
    module = next((n.module for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names if a.name == base), "")
    return read_options(_ROOT.parent / (module.replace(".", "/") + ".py"), base) if module.startswith("layerzoo.") else {}


def _read_card(path: Path) -> Card:
    """Evaluate the literal keywords of the `card = Card(...)` line in a class body."""
    _, line = _find_card(ast.parse(path.read_text(encoding="utf-8")), path)
    return Card(**{k.arg: ast.literal_eval(k.value) for k in line.value.keywords})


def _find_card(tree: ast.Module, path: Path) -> tuple[ast.ClassDef, ast.Assign]:
    for node in tree.body:
        for line in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(line, ast.Assign) and getattr(line.targets[0], "id", "") == "card":
                return node, line
    expected = "card = Card(...) with literal values in the class body"
    raise bad_value(f"card of {path.stem}", got="none", expected=expected, do=f"Add it to {path}.")


LAYERS = Room("layers", "layerzoo.list_layers()")
FFNS = Room("ffn", "layerzoo.registry.FFNS.names()")
POSITIONS = Room("positions", "layerzoo.registry.POSITIONS.names()")
DOWNSAMPLES = Room("downsample", "layerzoo.registry.DOWNSAMPLES.names()")
