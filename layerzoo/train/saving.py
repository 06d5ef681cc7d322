"""Training checkpoints: folders of tensors and plain JSON, each byte vouched for by a manifest that is written last. No pickle.

`ckpt/step-000001200/` holds `model.safetensors`, `state.safetensors` (optimiser, scaler), `state.json` (all else, and where each tensor
belongs) and `manifest.json`. It is written beside its place under a hidden name, synced and renamed: a process killed at any moment
leaves the whole folder or none.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lightning_fabric.plugins import CheckpointIO
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from layerzoo.checkpoint import LARGEST, MANIFEST, from_json, refused, staged, sync, to_json, vanish, write_synced
from layerzoo.foreign import check_file
from layerzoo.train.plain import flatten, unflatten
from layerzoo.train.storage import check_room, entry, stored

FORMAT = 1
_MODEL, _STATE, _JSON = "model.safetensors", "state.safetensors", "state.json"
_FILES = (_MODEL, _STATE, _JSON)
_WEIGHTS = "state_dict."  # begins the names of the task's tensors
_NAME = re.compile(r"step-(\d{9,})")
_SLACK = 2**20  # bytes that JSON and the file system take beside tensors
_AGAIN = "Delete the folder: the one before it is used then."


class FolderCheckpointIO(CheckpointIO):
    """Lightning's checkpoints as such folders.

    Args:
        about: what the manifest says beside its files, in plain values: recipe, seed, versions.
    """

    def __init__(self, about: dict):
        self.about = about

    def save_checkpoint(self, checkpoint: dict, path: str | Path, storage_options: object = None) -> None:
        """Write the folder `path`.

        Raises:
            ValueError: for an object that is neither a tensor nor a plain value, by its place and type; nothing is written then.
            OSError: if it cannot be written, or if there is not room enough.
        """
        write(Path(path), checkpoint, self.about)

    def load_checkpoint(self, path: str | Path, map_location: object = None, weights_only: bool | None = None) -> dict:
        """What was saved, on the CPU. Raises DataRefused, naming the file, if a byte has changed since."""
        return read(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete the folder; killed on the way, it is gone under this name all the same."""
        vanish(Path(path))


def write(folder: Path, checkpoint: dict, about: dict) -> None:
    """Write a training checkpoint; arguments and errors as for `FolderCheckpointIO`."""
    tensors: dict[str, Tensor] = {}
    state = {key: flatten(value, key, tensors) for key, value in checkpoint.items()}
    parts = {_MODEL: {}, _STATE: {}}
    for name, tensor in _apart(tensors).items():
        parts[_MODEL if name.startswith(_WEIGHTS) else _STATE][name] = tensor
    if not folder.parent.is_dir():
        folder.parent.mkdir(exist_ok=True)  # a run folder that is gone is not made anew
        sync(folder.parent.parent)
    need = sum(t.nbytes for t in tensors.values()) + _SLACK
    check_room("a checkpoint takes", need, folder.parent)
    with stored(folder, need):
        if not (folder / MANIFEST).is_file():
            vanish(folder)  # a damaged one, which `newest_whole` passed over
        with staged(folder, overwrite=True) as temp, ThreadPoolExecutor(len(parts)) as pool:
            entries = dict(zip(parts, pool.map(lambda name: _write_tensors(temp / name, parts[name]), parts)))
            data = json.dumps(state, separators=(",", ":"), allow_nan=False).encode()
            write_synced(temp / _JSON, data)
            entries[_JSON] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            manifest = {**about, "format": FORMAT, "step": checkpoint["global_step"], "epoch": checkpoint["epoch"], "files": entries}
            manifest["sha256"] = hashlib.sha256(to_json(manifest)).hexdigest()
            write_synced(temp / MANIFEST, to_json(manifest))


def read(folder: Path) -> dict:
    """The checkpoint in a verified folder. Raises DataRefused as `verify`."""
    verify(folder)
    try:
        state = json.loads((folder / _JSON).read_bytes())
        return unflatten(state, load_file(folder / _MODEL) | load_file(folder / _STATE))
    except (SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise refused(folder, got=f"{type(error).__name__}: {error}", expected="the state of a training", do=_AGAIN) from error


def verify(folder: Path) -> dict:
    """The manifest, once each file has proved to have the size and SHA-256 that it states.

    Raises:
        SecurityRefused: for a link, a device or a pickle in place of one of its files.
        DataRefused: naming the file that is missing, truncated or changed.
    """
    path = folder / MANIFEST
    for name in (MANIFEST, *_FILES):
        check_file(folder / name)
    data = path.read_bytes() if path.is_file() and path.stat().st_size <= LARGEST[MANIFEST] else b"{}"
    manifest = from_json(data, path)
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    if manifest.get("sha256") != hashlib.sha256(to_json(rest)).hexdigest() or data != to_json(manifest):
        raise refused(path, got="altered content" if path.exists() else "no file", expected="the manifest of a training checkpoint", do=_AGAIN)
    if (version := json.dumps(manifest.get("format"))) != str(FORMAT):  # as text, for True == 1.0 == 1
        raise refused(path, got=f"format {version:.40}", expected=f"format {FORMAT}", do="Resume with the version of layerzoo that wrote it.")
    stated = manifest.get("files")
    if not isinstance(stated, dict) or not all(isinstance(stated.get(name), dict) and stated[name].keys() == {"bytes", "sha256"} for name in _FILES):
        raise refused(path, got="no such list", expected=f"the size and SHA-256 of {', '.join(_FILES)}", do=_AGAIN)
    for name in _FILES:
        found = entry(folder / name) if (folder / name).is_file() else None
        if found != stated[name]:
            got = f"{found['bytes']} bytes with SHA-256 {found['sha256'][:12]}..." if found else "no file"
            expected = "{bytes} bytes with SHA-256 {sha256!s:.12}...".format(**stated[name])
            raise refused(folder / name, got=got, expected=expected, do=_AGAIN)
    return manifest


def saved(folder: Path) -> list[Path]:
    """The training checkpoints in the folder ckpt of a run, oldest first, whole or not."""
    found = {int(name[1]): path for path in _entries(folder) if (name := _NAME.fullmatch(path.name))}
    return [found[step] for step in sorted(found)]


def newest_whole(folder: Path) -> Path | None:
    """The newest training checkpoint in the folder ckpt of a run whose bytes are those that were written; None if none was saved.

    Warns:
        UserWarning: of each newer one that is damaged.
    Raises:
        DataRefused: if all are damaged.
    """
    reasons = []
    for path in reversed(saved(folder)):
        try:
            verify(path)
        except ValueError as error:
            reasons.append(str(error))
            continue
        for reason in reasons:
            warnings.warn(f"{reason} It goes on from {path.name} instead.", stacklevel=2)
        return path
    if reasons:
        raise refused(folder, got="; ".join(reasons), expected="a training checkpoint that is whole", do="Begin anew with --fresh.")
    return None


def place(folder: Path, step: int) -> Path:
    """Where the checkpoint after optimiser step `step` lies in the folder ckpt of a run."""
    return folder / f"step-{step:09}"


def _entries(folder: Path) -> Iterator[Path]:
    return folder.iterdir() if folder.is_dir() else iter(())


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without memory in common, which safetensors refuses."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        home = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if tensor.numel() and home in seen else tensor
        seen.add(home)
    return apart


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> dict:
    """A file that is on the disk when this returns, and its entry in the manifest; hashed while it is synced."""
    save_file(tensors, path)
    with open(path, "rb") as file, ThreadPoolExecutor(1) as pool:
        synced = pool.submit(os.fsync, file.fileno())
        stated = entry(path)
        synced.result()
    return stated
