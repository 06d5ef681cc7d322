"""The checkpoint folder: weights, configuration, model card and a manifest that vouches for each byte. No pickle.

A folder is written beside its place under a hidden name, synced and renamed. A process killed at any moment leaves the old
folder or the new one. Between the two renames of an overwrite the old one has the hidden name
`.<name>.old-<host>-<process>-<count>`: reading finds it there and warns, and the next save beside it puts it back.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import json
import os
import platform
import re
import shutil
import socket
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from layerzoo import __version__
from layerzoo.errors import DataRefused, Refusal, bad_value
from layerzoo.foreign import check_file, refuse_file
from layerzoo.model_card import model_card

if TYPE_CHECKING:
    from torch import Tensor, nn

FORMAT = 1
WEIGHTS, CONFIG, CARD, MANIFEST = "model.safetensors", "config.json", "README.md", "manifest.json"
FILES = (WEIGHTS, CONFIG, CARD)  # what the manifest vouches for
LARGEST = {WEIGHTS: 2**36, CONFIG: 2**20, CARD: 2**22, MANIFEST: 2**22}  # bytes
_MOST_VALUES, _DEEPEST = 2**18, 64  # of JSON: far beyond any checkpoint, and read and written again in a moment
_AGAIN = "Copy or pull the folder again."
_HIDDEN = re.compile(r"\.(?P<name>.+)\.(?P<state>new|old)-(?P<host>.+)-(?P<process>\d{1,9})-\d+")
_in_use: set[str] = set()  # hidden names in use in this process; others with its number are of a dead one that had it
_count = itertools.count()


def save_checkpoint(
    folder: str | Path, model: nn.Module, *, classes: list[str], mean: list[float], std: list[float], metrics: dict[str, float],
    recipe: dict | None = None, recipe_sha256: str = "", recipe_name: str = "", overwrite: bool = False,
) -> Path:
    """Write a checkpoint folder, read it back, and only then give it its name. Tied tensors are stored under each of their names.

    Args:
        folder: where; its parents are made.
        model: of `layerzoo.create_model`; its config may hold plain values and registered names, no classes.
        classes: name of each class, in the order of the logits.
        mean: per channel, of pixels in [0, 1], that inputs are normalised by.
        std: likewise.
        metrics: such as {"test/top1": 0.91}.
        recipe: the resolved recipe, in plain values.
        recipe_sha256: of that recipe.
        recipe_name: such as "cifar10/resnet18".
        overwrite: replace a checkpoint that stands there.
    Raises:
        ValueError: for a folder that exists, weights or metrics that are not finite, values that JSON cannot hold, class names
            or normalisation that do not fit the model, or a config that does not rebuild the model.
    """
    target = Path(folder).resolve()
    counts = {"classes": (classes, model.num_classes or len(classes)), "mean": (mean, model.in_chans), "std": (std, model.in_chans)}
    for what, (values, count) in counts.items():
        if len(values) != count:
            raise bad_value(what, got=f"{len(values)} values", expected=f"{count}, as the model has", do="Pass one per class or channel.")
    versions = {"python": platform.python_version()} | {package: importlib.metadata.version(package) for package in ("torch", "timm")}
    versions["layerzoo"] = __version__  # its metadata is not there when it runs from its source folder
    name = recipe["model"]["name"] if recipe else model.config["model"]
    manifest = {
        "model": name, "format": FORMAT, "versions": versions, "recipe_name": recipe_name, "recipe_sha256": recipe_sha256, "recipe": recipe,
        "metrics": metrics, "classes": classes, "input_size": model.config["input_size"], "mean": mean, "std": std}
    manifest = {key: _plain(value, key) for key, value in manifest.items()}
    _check_fields(manifest, "checkpoint", do="Correct the argument.")
    config = _plain(model.config, "config")
    contents = {WEIGHTS: _weights(model), CONFIG: to_json(config), CARD: model_card(config, manifest).encode()}
    manifest["files"] = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in contents.items()}
    manifest["sha256"] = hashlib.sha256(to_json(manifest)).hexdigest()
    with staged(target, overwrite) as temp:
        for name, data in (contents | {MANIFEST: to_json(manifest)}).items():
            write_synced(temp / name, data)
        load_checkpoint(temp)
    return target


def verify_checkpoint(folder: str | Path) -> dict:
    """The manifest, once each file has proved to have the size and SHA-256 it states. Other files in the folder are never opened.

    Warns:
        UserWarning: if what is read is the previous folder, which an overwrite that was killed left under its hidden name.
    Raises:
        DataRefused: for a file that is missing, truncated, changed, malformed or too large, by its name.
        SecurityRefused: for a pickle or an archive, a link out of the folder, a device or a pipe, none of which is opened.
    """
    return _read(Path(folder))[0]


def load_checkpoint(folder: str | Path) -> nn.Module:
    """The model of a verified folder, in eval mode on the CPU, with its manifest as `.manifest`. Leaves the random state alone.

    Raises:
        ValueError: as `verify_checkpoint`; for a config that builds no model here; for tensors that do not fit the model, by name.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    from layerzoo.models.create import build_model

    manifest, contents = _read(Path(folder))
    where = Path(folder, CONFIG)
    config = from_json(contents[CONFIG], where)
    try:
        with torch.random.fork_rng(devices=[]):
            model = build_model(config)
    except Exception as error:  # whatever a stranger's values make a constructor raise
        do = "Register layers of your own with layerzoo.register_layer first."
        raise refused(where, got=f"{type(error).__name__}: {error}", expected="a config that builds a model", do=do) from error
    where = Path(folder, WEIGHTS)
    _check_header(contents[WEIGHTS], where)
    try:
        tensors = load(contents[WEIGHTS])
    except (SafetensorError, KeyError) as error:  # KeyError: a dtype that torch does not have
        raise refused(where, got=str(error), expected="a safetensors file") from error
    stored = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if len(stored) == 1 and stored <= {torch.float16, torch.bfloat16, torch.float64}:
        model.to(*stored)
    _check_tensors(tensors, model.state_dict(), where)
    model.load_state_dict(tensors)
    model.manifest = manifest
    return model.eval()


def parse_manifest(data: bytes, where: object) -> dict:
    """The manifest in these bytes. Its own "sha256" is that of the rest, so a flipped bit in it is found too.

    Raises:
        ValueError: for malformed JSON, an unknown format, altered content or fields of the wrong type.
    """
    manifest = from_json(data, where)
    if (version := _short(manifest.get("format"))) != str(FORMAT):  # as text, for True == 1
        do = "Read it with the version of layerzoo that wrote it."
        raise refused(where, got=f"format {version}", expected=f"format {FORMAT}", do=do)
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    if manifest.get("sha256") != hashlib.sha256(to_json(rest)).hexdigest() or data != to_json(manifest):
        raise refused(where, got="altered content", expected="content with the SHA-256 it states")
    if not _is_file_list(manifest.get("files")):
        expected = f"the size and SHA-256 of {', '.join(FILES)} within the size limits"
        raise refused(f"{where}: files", got=_short(manifest.get("files")), expected=expected)
    _check_fields(manifest, where)
    return manifest


@contextmanager
def staged(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """A hidden folder to fill, which becomes `target` at the end of the block, or vanishes if that raises.

    What dead processes of this host left beside it is swept first.
    """
    make_folder(target.parent)
    sweep(target.parent)
    if os.path.lexists(target) and not (overwrite and (target / MANIFEST).is_file()):
        do = "Delete it or choose another name." if overwrite else "Choose another name, or pass overwrite=True."
        raise bad_value(str(target), got="a path that exists", expected="a new folder" + " or a checkpoint" * overwrite, do=do)
    mark = _mark()
    temp, old = (target.with_name(f".{target.name}.{state}-{mark}") for state in ("new", "old"))
    _in_use.update((temp.name, old.name))
    try:
        os.mkdir(temp)
        yield temp
        sync(temp)
        if overwrite and target.exists():
            os.rename(target, old)
        os.rename(temp, target)
        sync(target.parent)
    finally:
        _in_use.difference_update((temp.name, old.name))
        sweep(target.parent)


def vanish(folder: Path) -> None:
    """Delete a folder by way of a hidden name, so that a part of it never stands in its place; does nothing if it is not there."""
    hidden = folder.with_name(f".{folder.name}.new-{_mark()}")
    with suppress(FileNotFoundError):
        os.rename(folder, hidden)
        shutil.rmtree(hidden)


def make_folder(folder: Path) -> None:
    """A folder and its parents, on the disk when this returns."""
    if not folder.exists():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def write_synced(path: Path, data: bytes) -> None:
    """A new file that is on the disk when this returns."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def to_json(value: object) -> bytes:
    """The one way a value is written; manifests are compared with it byte for byte."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def from_json(data: bytes, where: object) -> dict:
    """The JSON object in these bytes; anything else is refused."""
    if sum(map(data.count, (b",", b"[", b"{"))) > _MOST_VALUES:
        raise refused(where, got=f"JSON of more than {_MOST_VALUES} values", expected="no more than that")
    twice = []
    try:
        value = json.loads(data, object_pairs_hook=lambda pairs: _as_dict(pairs, twice))
        if (depth := _depth(value)) > _DEEPEST:
            raise RecursionError(f"{depth} levels")
        to_json(value)
    except (ValueError, RecursionError) as error:
        raise refused(where, got=f"malformed JSON ({str(error)[:80]})", expected="plain JSON") from error
    if twice:
        raise refused(where, got=f"the key {_short(twice[0])} twice", expected="each key once")
    if not isinstance(value, dict):
        raise refused(where, got=_short(value), expected="a JSON object")
    return value


def _as_dict(pairs: list[tuple[str, object]], twice: list[str]) -> dict:
    """The pairs as a dict; keys that are there twice, of which two readers could take different values, join that list."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice += [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    return found


def _depth(value: object) -> int:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inside is None else 1 + max(map(_depth, inside), default=0)


def refused(what: object, *, got: str, expected: str, do: str = _AGAIN) -> Refusal:
    """The refusal of a file that is not what it should be."""
    return bad_value(str(what), got=got, expected=expected, do=do, kind=DataRefused)


def _read(folder: Path) -> tuple[dict, dict[str, bytes]]:
    """The manifest and the bytes that it vouches for: those verified are those used."""
    if not folder.is_dir():
        if folder.exists():
            refuse_file(folder)
        missing = folder.absolute()
        left = [path for path, hidden in _leftovers(missing.parent) if hidden["name"] == missing.name and hidden["state"] == "old"]
        if not left:
            raise refused(folder, got="no folder", expected="a checkpoint folder", do="Check the path.")
        warnings.warn(f"{folder}: an overwrite was cut short; what is read is the previous checkpoint, {left[0].name}.", stacklevel=3)
        folder = left[0]
    manifest = parse_manifest(_content(folder / MANIFEST), folder / MANIFEST)
    return manifest, {name: _content(folder / name, manifest["files"][name]) for name in FILES}


def _content(path: Path, stated: dict | None = None) -> bytes:
    check_file(path)
    if not path.is_file():
        raise refused(path, got="no file", expected="one of the files of a checkpoint")
    size, largest = path.stat().st_size, LARGEST[path.name]
    if size > largest:
        raise refused(path, got=f"{size} bytes", expected=f"at most {largest}")
    if stated and size != stated["bytes"]:
        raise refused(path, got=f"{size} bytes", expected=f"{stated['bytes']}, as {MANIFEST} states")
    data = path.read_bytes()
    if stated and (digest := hashlib.sha256(data).hexdigest()) != stated["sha256"]:
        raise refused(path, got=f"SHA-256 {digest[:12]}...", expected=f"{stated['sha256'][:12]}..., as {MANIFEST} states")
    return data


def _check_fields(manifest: dict, where: object, do: str = _AGAIN) -> None:
    for key, (fits, expected) in _FIELDS.items():
        if not fits(manifest.get(key)):
            raise refused(f"{where}: {key}", got=_short(manifest.get(key)), expected=expected, do=do)


def _is_file_list(value: object) -> bool:
    return isinstance(value, dict) and value.keys() == set(FILES) and all(
        isinstance(entry, dict) and type(entry.get("bytes")) is int and 0 <= entry["bytes"] <= LARGEST[name]
        and re.fullmatch("[0-9a-f]{64}", str(entry.get("sha256"))) for name, entry in value.items())


def _is_numbers(value: object) -> bool:
    return isinstance(value, list) and all(type(v) in (int, float) for v in value)


_FIELDS: dict[str, tuple[Callable[[object], bool], str]] = {
    "classes": (lambda v: isinstance(v, list) and all(isinstance(name, str) for name in v), "a list of names"),
    "input_size": (lambda v: isinstance(v, list) and [type(n) for n in v] == [int] * 3, "channels, height and width"),
    "mean": (_is_numbers, "a list of numbers"), "std": (_is_numbers, "a list of numbers"),
    "metrics": (lambda v: isinstance(v, dict) and _is_numbers([*v.values()]), "numbers by name"),
    "recipe": (lambda v: v is None or isinstance(v, dict), "a resolved recipe or null"),
    **dict.fromkeys(("model", "recipe_name", "recipe_sha256"), (lambda v: isinstance(v, str), "text")),
    "versions": (lambda v: isinstance(v, dict), "versions by package"),
}


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _plain(value: object, where: str) -> object:
    """The value as JSON gives it back."""
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(v, f"{where}.{key}") for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, type):
        do = "Register it with layerzoo.register_layer and build the model by its name."
        raise bad_value(where, got=f"the class {value.__name__}", expected="a name", do=do)
    if type(value) not in (str, int, float, bool, type(None)):
        expected = "text, a number, a list or a dict with text keys"
        raise bad_value(where, got=type(value).__name__, expected=expected, do="Pass plain values.")
    if isinstance(value, float) and not abs(value) < float("inf"):
        raise bad_value(where, got=value, expected="a finite number", do="Leave it out, or find out why it is not.")
    return value


def _weights(model: nn.Module) -> bytes:
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            do = "Nothing was written; train with a lower learning rate."
            raise bad_value(f"tensor {name}", got="values that are not finite", expected="finite weights", do=do)
    return save(tensors, metadata={"format": "pt"})


def _check_header(data: bytes, where: Path) -> None:
    """What the library of safetensors takes and is no checkpoint's: a key that stands there twice, a header without measure."""
    length = int.from_bytes(data[:8], "little")
    if length > LARGEST[MANIFEST]:
        raise refused(where, got=f"a header of {length} bytes", expected=f"at most {LARGEST[MANIFEST]}")
    from_json(data[8: 8 + length], where)


def _check_tensors(got: dict[str, Tensor], expected: dict[str, Tensor], where: Path) -> None:
    for name in sorted(got.keys() | expected.keys()):
        there, wanted = _describe(got.get(name)), _describe(expected.get(name))
        if there != wanted:
            raise refused(f"{where}: tensor {name}", got=there, expected=wanted, do=f"Check that {CONFIG} is that of these weights.")


def _describe(tensor: Tensor | None) -> str:
    return "no such tensor" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _mark() -> str:
    """Host, process and a count: the end of a hidden name."""
    return f"{socket.gethostname()}-{os.getpid()}-{next(_count)}"


def _leftovers(parent: Path) -> Iterator[tuple[Path, re.Match]]:
    """What saves into this folder have under hidden names: path, and the parts of its name."""
    for path in parent.iterdir() if parent.is_dir() else ():
        if hidden := _HIDDEN.fullmatch(path.name):
            yield path, hidden


def sweep(parent: Path) -> None:
    """Delete what dead processes of this host left in a folder under hidden names; what they had set aside gets its place again."""
    for path, hidden in [*_leftovers(parent)]:
        process = int(hidden["process"])
        if hidden["host"] != socket.gethostname() or path.name in _in_use or (process != os.getpid() and _is_alive(process)):
            continue
        if hidden["state"] == "old" and not os.path.lexists(parent / hidden["name"]):
            with suppress(FileNotFoundError):  # another process put it back first
                os.rename(path, parent / hidden["name"])
        else:
            shutil.rmtree(path, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # another user's
    return True


def sync(folder: Path) -> None:
    """The entries of a folder are on the disk when this returns."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
