"""The folder of a run: where it lies, what it resumes from, what it was made with."""

from __future__ import annotations

import fcntl
import importlib.metadata
import itertools
import json
import os
import platform
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from pytorch_lightning.utilities import rank_zero_only

from layerzoo.checkpoint import make_folder, sweep, sync
from layerzoo.config import Recipe
from layerzoo.errors import bad_value
from layerzoo.recipe import NOT_IN_HASH, read_recipe, resolved, run_base, save
from layerzoo.train.saving import newest_whole
from layerzoo.train.storage import stored

_RECIPE = "recipe.yaml"
_PACKAGES = {"layerzoo", "torch", "torchvision", "pytorch-lightning", "torchmetrics", "timm", "wandb", "numpy", "pillow", "safetensors"}


def open_folder(recipe: Recipe, recipe_name: str, resume: str) -> tuple[Path, Path | None]:
    """The run folder runs/<recipe name>/<hash>-s<seed>[-k], and the training checkpoint to go on from, if any.

    A new run gets a new folder, with recipe.yaml and env.json in it. Ranks above 0 write nothing.

    Args:
        recipe: what to run.
        recipe_name: as listed, such as "cifar10/resnet18".
        resume: "auto" for the newest run of this recipe and seed, else a new one; "never" for a new one; or the path of a run folder.
    Raises:
        ValueError: if there is no run at that path, its recipe differs from this one, or all its training checkpoints are damaged.
    """
    base = run_base(recipe, recipe_name)
    if resume == "never":
        return _new_folder(recipe, base), None
    if resume == "auto":
        folder = next(reversed([*itertools.takewhile(Path.exists, _names(base))]), None)
        if folder is None:
            return _new_folder(recipe, base), None
        if not (folder / _RECIPE).exists():  # it was killed between making its folder and this
            _keep(recipe, folder)
    else:
        folder = Path(resume)
        if not (folder / _RECIPE).is_file():
            raise bad_value("--resume", got=repr(resume), expected="a run folder, with recipe.yaml in it", do=f"Look below {base.parent}.")
    _check_same(recipe, folder / _RECIPE)
    if not rank_zero_only.rank:
        for place in (folder, checkpoints(folder)):
            sweep(place)  # what a killed process left half written or set aside
    return folder, newest_whole(checkpoints(folder))


def checkpoints(folder: Path) -> Path:
    """Where a run keeps what it resumes from."""
    return folder / "ckpt"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of a run folder; whatever ends this process gives it free.

    Raises:
        ValueError: if a run is in it, by its host and process.
    """
    with open(folder / ".lock", "a+", encoding="utf-8") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, not inherited by workers that outlive a kill
        except (BlockingIOError, PermissionError):
            lock.seek(0)
            do = "Wait for it, or begin another with --fresh."
            raise bad_value(f"run folder {folder}", got=f"a run in it ({lock.read().strip()})", expected="none", do=do) from None
        except OSError:
            pass  # a file system without locks
        lock.truncate(0)
        lock.write(f"host {socket.gethostname()}, process {os.getpid()}")
        lock.flush()
        yield


def tell(folder: Path, **status: object) -> None:
    """Replace status.json, which says how a run stands, for other programs."""
    part = folder / ".status.json"
    with stored(folder / "status.json"):
        part.write_text(json.dumps(status | {"time": round(time.time(), 3)}, indent=1), encoding="utf-8")
        os.replace(part, folder / "status.json")


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide results."""
    found = {d.name: d.version for d in importlib.metadata.distributions() if d.name in _PACKAGES}
    return {"python": platform.python_version(), **dict(sorted(found.items()))}


def _names(base: Path) -> Iterator[Path]:
    yield base
    yield from (base.with_name(f"{base.name}-{k}") for k in itertools.count(1))


def _new_folder(recipe: Recipe, base: Path) -> Path:
    if rank_zero_only.rank:
        return base
    make_folder(base.parent)
    for folder in _names(base):
        try:
            folder.mkdir()
            break
        except FileExistsError:
            continue  # by an earlier run, or by one that starts just now
    _keep(recipe, folder)
    (folder / "env.json").write_text(json.dumps(_environment(), indent=1), encoding="utf-8")
    return folder


def _keep(recipe: Recipe, folder: Path) -> None:
    """Write recipe.yaml: on the disk, whole, when this returns, and before it not at all."""
    part = folder / f".{_RECIPE}"
    save(recipe, part)
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    os.replace(part, folder / _RECIPE)
    for place in (folder, folder.parent):
        sync(place)


def _check_same(recipe: Recipe, stored: Path) -> None:
    """A checkpoint never supplies the configuration: what decides the result must be what it was."""
    was, now = (_flat(resolved(r)) for r in (read_recipe(str(stored)), recipe))
    ignored = tuple(key for key in NOT_IN_HASH if key != "seed")
    differing = [
        f"{key} is {now.get(key)!r}, in the run {was.get(key)!r}" for key in sorted(was.keys() | now.keys())
        if was.get(key) != now.get(key) and not any(f"{key}.".startswith(f"{i}.") for i in ignored)]
    if differing:
        raise bad_value(
            "--resume", got="; ".join(differing), expected=f"the recipe that {stored.parent} began with",
            do="Begin a new run with --fresh, or take the differences back.")


def _flat(values: dict, path: str = "") -> dict[str, object]:
    flat = {}
    for key, value in values.items():
        flat |= _flat(value, f"{path}{key}.") if isinstance(value, dict) and value else {f"{path}{key}": value}
    return flat


def _environment() -> dict:
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"versions": versions(), "platform": platform.platform(), "gpus": gpus, "threads": torch.get_num_threads(), "git": _git()}


def _git() -> dict | None:
    """Commit of the checkout layerzoo runs from, and whether files differ from it; None outside a checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    asked = [subprocess.run(["git", "-C", root, *words], check=False, capture_output=True, text=True, timeout=10) for words in (
        ("rev-parse", "HEAD"), ("status", "--porcelain"))]
    return {"commit": asked[0].stdout.strip(), "changed": bool(asked[1].stdout)}
