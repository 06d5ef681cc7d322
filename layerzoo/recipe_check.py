"""What a recipe may say: keys, types, ranges and names, each refusal with its line. Imports neither torch nor data."""

from __future__ import annotations

import ast
import builtins
import dataclasses
import difflib
import functools
import importlib.util
import re
import types
import typing
from collections.abc import Callable, Iterable
from pathlib import Path

from layerzoo.config import GREY, LOCAL, ModelConfig, Recipe, TrainerConfig
from layerzoo.errors import nearest
from layerzoo.models.presets import PRESETS, list_models
from layerzoo.registry import DOWNSAMPLES, FFNS, LAYERS, POSITIONS, Room, read_options
from layerzoo.strict_yaml import RecipeError, RecipeRefused, dotted

ALLOWED_IMPORTS = ("layerzoo", "torch.optim", "torch.nn", "pytorch_lightning", "lightning", "torchmetrics", "timm")
SPECS = ("layer", "ffn", "position", "stem", "downsample")  # keys of model that take a name or {name: ..., option: ...}
SOURCES = ("torch/", "hfds/", "hfids/", "tfds/", "wds/")

_MODELS = Path(__file__).parent / "models"
_SEE_ALL = "`layerzoo show RECIPE --resolved` lists every key."
_BY_THE_RUN = {"logger", "default_root_dir", "enable_checkpointing", "enable_progress_bar", "use_distributed_sampler", "plugins"}
_RULES: dict[str, tuple[Callable, tuple[str, ...]]] = {
    ">= 1": (lambda v: v >= 1, (
        "data.img_size", "data.batch_size", "data.eval_batch_size", "trainer.max_epochs", "trainer.num_nodes",
        "trainer.accumulate_grad_batches", "trainer.log_every_n_steps", "trainer.check_val_every_n_epoch",
        "task.optimizer.lr_batch_size")),
    ">= 0": (lambda v: v >= 0, (
        "seed", "data.num_workers", "data.max_unreadable", "data.augment.crop_padding", "data.augment.cutout", "data.augment.mixup",
        "data.augment.cutmix", "data.augment.color_jitter", "task.optimizer.weight_decay", "task.schedule.warmup_epochs", "logging.wrong_predictions")),
    ">= 0 and < 1": (lambda v: 0 <= v < 1, (
        "model.drop_path", "data.val_fraction", "data.augment.resized_crop", "task.label_smoothing", "task.ema_decay",
        "task.optimizer.momentum")),
    ">= 0 and <= 1": (lambda v: 0 <= v <= 1, ("task.schedule.start", "task.schedule.end")),
    "> 0": (lambda v: v > 0, (
        "task.optimizer.lr", "trainer.gradient_clip_val", "trainer.save_minutes", "trainer.rank_timeout", "data.worker_timeout",
        "model.layer_scale")),
    "> 0 and <= 1": (lambda v: 0 < v <= 1, ("data.train_fraction",)),
}

IN_PARTS = (  # timm's optimisers whose steps and states are the same on parts of tensors
    "adabelief", "adadelta", "adagrad", "adam", "adamax", "adamc", "adamw", "adan", "adanw", "adopt", "adoptw", "lamb", "lambw", "laprop",
    "larc", "lars", "lion", "madgrad", "madgradw", "momentum", "muon", "nadam", "nadamw", "nesterov", "nmuon", "radam", "radamw", "rmsprop",
    "rmsproptf", "sgd", "sgdw")


def check(values: dict, where: dict[tuple, str]) -> Recipe:
    """The recipe that `values` state, defaults filled in.

    Args:
        values: what the file and the command line say.
        where: "file:line" of each key path.
    Raises:
        RecipeRefused: for a class_path outside ALLOWED_IMPORTS, before any import, and for a file that writes outside the current folder.
        RecipeError: for the first key, type, range or name that is wrong.
    """
    checker = _Checker(where)
    checker.imports(values, ())
    checker.folders(values)
    checker.keys(Recipe, values, ())
    recipe = checker.types(Recipe, values, ())
    checker.ranges(recipe)
    checker.model(recipe)
    checker.data(recipe)
    checker.trainer(recipe)
    return recipe


class _Checker:
    def __init__(self, where: dict[tuple, str]):
        self.where = where

    def error(self, path: tuple, *, got: str, expected: str, do: str, kind: type[RecipeError] = RecipeError) -> RecipeError:
        known = next(path[:n] for n in range(len(path), -1, -1) if path[:n] in self.where)
        return kind(self.where[known], dotted(path), got=got, expected=expected, do=do)

    def unknown(self, path: tuple, what: str, names: Iterable[str], do: str = _SEE_ALL) -> RecipeError:
        names = list(names)
        close = nearest(str(path[-1]), names)
        hint = f"{what}, such as {', '.join(close)}" if close else f"{what}, of which there is none"
        remedy = f"Write {close[0]}." if close else "Delete it."
        return self.error(path, got=f"the unknown key {path[-1]!r}", expected=hint, do=f"{remedy} {do}".strip())

    def imports(self, value: object, path: tuple) -> None:
        for key, child in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
            if key == "class_path" and not is_allowed(child):
                raise self.error(
                    (*path, key), got=repr(child), expected=f"a class of {', '.join(ALLOWED_IMPORTS)}", kind=RecipeRefused,
                    do="A recipe is data: import classes of your own in a script that calls layerzoo.")
            self.imports(child, (*path, key))

    def folders(self, values: dict) -> None:
        runs = values.get("runs")
        if isinstance(runs, str) and self.where[("runs",)] != "command line" and (Path(runs).is_absolute() or ".." in Path(runs).parts):
            raise self.error(
                ("runs",), got=repr(runs), expected="a folder below the current one", kind=RecipeRefused,
                do="Name a folder elsewhere on the command line: --runs PATH.")

    def keys(self, cls: type, values: dict, path: tuple) -> None:
        hints = typing.get_type_hints(cls)
        for key, value in values.items():
            if key not in hints:
                elsewhere = [dotted(p) for p in _paths(Recipe) if p[-1] == key]
                raise self.unknown((*path, key), f"a key of {dotted(path) if path else 'a recipe'}", elsewhere or hints)
            if dataclasses.is_dataclass(hints[key]):
                if not isinstance(value, dict):
                    some = ", ".join([f.name for f in dataclasses.fields(hints[key])][:3])
                    raise self.error(
                        (*path, key), got=_shown(value), expected=f"a section with keys such as {some}",
                        do="Indent them below it, or delete the section for its defaults.")
                self.keys(hints[key], value, (*path, key))
        for f in dataclasses.fields(cls):
            if f.name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
                expected = f"{_english(hints[f.name])}{_meaning(cls, f.name)}"
                raise self.error((*path, f.name), got="nothing", expected=expected, do=f"Add {f.name}: to {dotted(path)}.")

    def types(self, cls: type, values: dict, path: tuple) -> object:
        """`values` as an instance of a dataclass; unlike jsonargparse's own reading, nothing is repaired."""
        from jsonargparse import ArgumentError  # not needed for listings

        parser = _parser(cls)
        try:
            config = parser.parse_object({"top": values})
        except ArgumentError as error:
            found = re.search(r'key "top\.([^"]+)"', str(error))
            raise self.wrong_type(cls, values, path, tuple(found[1].split(".")) if found else ()) from error
        for key, hint, value in _leaves(cls, values, ()):
            parsed = config.top
            for part in key:
                parsed = parsed[part]
            if not _same(value, parsed) or (value is None and types.NoneType not in typing.get_args(hint)):
                raise self.wrong_type(cls, values, path, key)
        return parser.instantiate_classes(config).top

    def wrong_type(self, cls: type, values: dict, path: tuple, key: tuple) -> RecipeError:
        value: object = values
        for part in key:
            owner, hint = cls, typing.get_type_hints(cls)[part]
            value, cls = value[part], hint if dataclasses.is_dataclass(hint) else cls
        do = "Write a value of that kind."
        if isinstance(value, str) and typing.get_origin(hint) is typing.Literal:
            do = f"Write {nearest(value, map(str, typing.get_args(hint)))[0]}."
        elif isinstance(value, str):
            do = "Numbers, true, false and null stand without quotes; lists and mappings in lines of their own."
        elif hint is str and not isinstance(value, (dict, list)):
            do = "Put it in quotes."
        return self.error((*path, *key), got=_shown(value), expected=f"{_english(hint)}{_meaning(owner, key[-1])}", do=do)

    def ranges(self, recipe: Recipe) -> None:
        for rule, (holds, keys) in _RULES.items():
            for key in keys:
                value: object = recipe
                for part in key.split("."):
                    value = getattr(value, part)
                if value is not None and not holds(value):
                    at = tuple(key.split("."))
                    raise self.error(at, got=str(value), expected=f"a number {rule}", do="Choose a number in that range.")

    def model(self, recipe: Recipe) -> None:
        model = recipe.model
        if model.name not in PRESETS:
            raise self.unknown_value(("model", "name"), model.name, "model", list_models(), "`layerzoo list models` lists all.")
        kind = PRESETS[model.name](recipe.data.img_size)["model"]
        whole = _table("classic", "WHOLE_BLOCKS") if kind == "pyramid" else {}
        own = {"block": "dict"} if kind == "pyramid" else {}
        parts = {
            "layer": _room(LAYERS, own) | whole, "ffn": _room(FFNS) | {"none": dict}, "position": _room(POSITIONS, {"after": "str"}),
            "downsample": _room(DOWNSAMPLES), "stem": _table("stem", "STEMS")}
        for key in SPECS:
            self.spec(getattr(model, key), ("model", key), key, parts[key])
        given = {f.name for f in dataclasses.fields(ModelConfig)}
        given |= {"input_size", "num_classes", "grid"}  # set from the data
        whole_model = read_options(_MODELS / f"{kind}.py", kind.title())
        if kind == "isotropic":
            whole_model["dim"] = "int"  # read_options leaves out what a model gives its parts
        head = read_options(_MODELS / "head.py", "Head") | {"norm": "str | dict", "num_features": "int"}  # those of Model
        block = read_options(_MODELS / "block.py", "Block")
        at, options = ("model", "options"), model.options
        for path, values, what, takes in (
            (at, options, f"an option of {kind} models", whole_model), ((*at, "block"), options.get("block"), "an option of blocks", block),
            ((*at, "head"), options.get("head"), "an option of heads", head)):
            self.options(values or {}, path, what, {k: v for k, v in takes.items() if k not in given})

    def spec(self, spec: object, path: tuple, kind: str, parts: dict[str, Callable[[], dict]]) -> None:
        """A name, {name: ..., option: ...}, or for layer and ffn a list of these."""
        if isinstance(spec, list):
            for i, entry in enumerate(spec):
                self.spec(entry, (*path, i), kind, parts)
        elif isinstance(spec, dict) and "name" not in spec:
            for key in difflib.get_close_matches("name", spec, 1, cutoff=0.5):
                raise self.unknown((*path, key), f"the key that names the {kind}", ["name"], "")
            expected = f"{{name: a {kind}, option: value}}"
            raise self.error(path, got="a mapping without name", expected=expected, do=f"Add name: to {dotted(path)}.")
        elif spec is not None:
            name = spec["name"] if isinstance(spec, dict) else spec
            if not isinstance(name, str) or name not in parts:
                see = "`layerzoo list layers` lists all." if kind == "layer" else f"All: {', '.join(sorted(parts))}."
                raise self.unknown_value((*path, "name") if isinstance(spec, dict) else path, name, kind, parts, see)
            options = {k: v for k, v in spec.items() if k != "name"} if isinstance(spec, dict) else {}
            see = f"`layerzoo show {name}` explains all." if kind == "layer" else ""
            self.options(options, path, f"an option of {name}", parts[name](), see)

    def options(self, given: dict, path: tuple, what: str, takes: dict[str, str], see: str = "") -> None:
        for key in given:
            if key not in takes:
                raise self.unknown((*path, key), what, takes, see)
        known = {k: t for k, t in ((k, _type(takes[k])) for k in given) if t is not None}
        if known:
            self.types(dataclasses.make_dataclass("Options", known.items()), {k: given[k] for k in known}, path)

    def unknown_value(self, path: tuple, got: object, what: str, names: Iterable[str], see: str) -> RecipeError:
        close = nearest(str(got), names)
        return self.error(path, got=repr(got), expected=f"a known {what} such as {', '.join(close)}", do=f"Write {close[0]}. {see}")

    def data(self, recipe: Recipe) -> None:
        source = recipe.data.source.removeprefix(GREY)
        folder = source.startswith(LOCAL) and source not in LOCAL
        if source != "digits" and not folder and not any(source.startswith(s) and len(source) > len(s) for s in SOURCES):
            raise self.error(
                ("data", "source"), got=repr(recipe.data.source), expected=f"digits, folder:PATH, wds:PATH, or a name after {', '.join(SOURCES)}",
                do="Write folder:PATH for a folder with train/ and test/ of one folder per class.")

    def trainer(self, recipe: Recipe) -> None:
        if recipe.task.schedule.warmup_epochs > recipe.trainer.max_epochs:
            raise self.error(
                ("task", "schedule", "warmup_epochs"), got=str(recipe.task.schedule.warmup_epochs),
                expected=f"at most trainer.max_epochs = {recipe.trainer.max_epochs}", do="Shorten the warm-up or train longer.")
        if recipe.trainer.strategy == "fsdp" and (recipe.task.compile or recipe.trainer.precision == "16-mixed"):
            got = "fsdp with task.compile" if recipe.task.compile else "fsdp with precision 16-mixed"
            raise self.error(("trainer", "strategy"), got=got, expected="ddp, or neither of these with fsdp", do="Use bf16-mixed, and do not compile.")
        if recipe.trainer.strategy == "fsdp" and recipe.task.optimizer.name not in IN_PARTS:
            raise self.error(
                ("task", "optimizer", "name"), got=f"{recipe.task.optimizer.name} with trainer.strategy fsdp", expected=f"one of {', '.join(IN_PARTS)}",
                do="Use one of them, or ddp: others are not proved on parts of tensors.")
        for i, entry in enumerate(recipe.trainer.callbacks):
            at = ("trainer", "callbacks", i)
            if "class_path" not in entry:
                expected = "{class_path: ..., init_args: {...}}"
                raise self.error(at, got="an entry without class_path", expected=expected, do="Add class_path.")
            for key in entry:
                if key not in ("class_path", "init_args"):
                    raise self.unknown((*at, key), "a key of a callback", ("class_path", "init_args"), "")
        if recipe.trainer.options:
            own = {f.name for f in dataclasses.fields(TrainerConfig)} | _BY_THE_RUN
            names = [a for a in _trainer_arguments() if a not in own]
            for key in recipe.trainer.options:
                if key not in names:
                    raise self.unknown(("trainer", "options", key), "a free argument of pytorch_lightning.Trainer", names, "")


def is_allowed(class_path: object) -> bool:
    """Whether a class_path names a public class of the allowed packages."""
    if not isinstance(class_path, str) or not re.fullmatch(r"([a-z]\w*\.)+[A-Z]\w*", class_path):
        return False
    return any(class_path.startswith(f"{package}.") for package in ALLOWED_IMPORTS)


def _paths(cls: type, path: tuple = ()) -> list[tuple]:
    """All key paths of a dataclass of dataclasses."""
    found = []
    for key, hint in typing.get_type_hints(cls).items():
        found += [(*path, key), *(_paths(hint, (*path, key)) if dataclasses.is_dataclass(hint) else ())]
    return found


@functools.cache
def _parser(cls: type):
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--top", type=cls)
    return parser


def _leaves(cls: type, values: dict, path: tuple) -> Iterable[tuple[tuple, object, object]]:
    for key, value in values.items():
        hint = typing.get_type_hints(cls)[key]
        yield from _leaves(hint, value, (*path, key)) if dataclasses.is_dataclass(hint) else [((*path, key), hint, value)]


def _same(given: object, parsed: object) -> bool:
    """Whether parsing kept the value: a whole number may become a float and a list a tuple, no more."""
    if isinstance(given, list) and isinstance(parsed, (list, tuple)):
        return len(given) == len(parsed) and all(map(_same, given, parsed))
    if isinstance(given, int) and not isinstance(given, bool) and isinstance(parsed, float):
        return given == parsed
    return type(given) is type(parsed) and given == parsed


def _room(room: Room, more: dict[str, str] = {}) -> dict[str, Callable[[], dict]]:  # noqa: B006  never changed
    """Names and how to read their options; `more` are those that the model takes out of the entry itself."""
    return {name: lambda name=name: room.options(name) | more for name in room.names()}


def _table(module: str, table: str) -> dict[str, Callable[[], dict]]:
    """The names of a literal {name: Class} in a module of layerzoo.models, read from its source."""
    path = _MODELS / f"{module}.py"
    lines = ast.parse(path.read_text(encoding="utf-8")).body
    found = next(line.value for line in lines if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == table)
    return {k.value: lambda cls=v.id: read_options(path, cls) for k, v in zip(found.keys, found.values)}


def _trainer_arguments() -> list[str]:
    """Argument names of pytorch_lightning.Trainer, read from its source, which takes no seconds."""
    folder = Path(importlib.util.find_spec("pytorch_lightning").origin).parent
    tree = ast.parse((folder / "trainer" / "trainer.py").read_text(encoding="utf-8"))
    cls = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Trainer")
    return [a.arg for n in cls.body if isinstance(n, ast.FunctionDef) and n.name == "__init__" for a in n.args.kwonlyargs]


def _type(text: str) -> object | None:
    """The type that an annotation of plain types states; None for any other."""
    names = vars(builtins) | {"Literal": typing.Literal}
    try:
        return typing.get_type_hints(types.new_class("Option", exec_body=lambda ns: ns.update(__annotations__={"it": text})), names)["it"]
    except NameError:
        return None


def _english(hint: object) -> str:
    names = {
        int: "a whole number", float: "a number", str: "text", bool: "true or false", dict: "a mapping", list: "a list",
        types.NoneType: "null"}
    if typing.get_origin(hint) is typing.Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join(map(_english, typing.get_args(hint)))
    if typing.get_origin(hint) in (list, tuple):
        inside = [a for a in typing.get_args(hint) if a is not ...]
        return "a list of " + " and ".join(dict.fromkeys(_english(a).removeprefix("a ") + "s" for a in inside))
    return names.get(hint, "a section")


def _meaning(cls: type, key: str) -> str:
    """What the docstring of a dataclass says of a field, in brackets."""
    found = re.search(rf"^ +{key}: (.+)$", cls.__doc__ or "", re.MULTILINE)
    return f" ({found[1].rstrip('.')})" if found else ""


def _shown(value: object) -> str:
    kinds = {str: "text", bool: "true or false", int: "a whole number", float: "a number", dict: "a mapping", list: "a list"}
    return "null" if value is None else f"{value!r} ({kinds[type(value)]})"
