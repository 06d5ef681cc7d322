"""Checkpoints by name, folder or address. Only the four files of a checkpoint cross, each verified by SHA-256 on the way.

`checkpoints/index.json` is {"format": 1, "checkpoints": {name: entry}}. An entry pins its name to `manifest_sha256`, and the manifest
pins the files; `sources` are folders beside the index, https:// and hf:// addresses, tried in order; `bytes`, `model`, `recipe`,
`metrics`, `num_classes` and `input_size` (C, H, W) are for listings. What is pulled lies in $LAYERZOO_CACHE, else in the user's cache
folder; from Hugging Face, in its own cache. LAYERZOO_OFFLINE=1 opens no connection. Processes that pull the same wait for one another
where the file system can lock, and are right without it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from layerzoo import checkpoint
from layerzoo.checkpoint import FILES, LARGEST, MANIFEST, refused, staged, vanish, verify_checkpoint, write_synced
from layerzoo.download import CHECK, check_address, download
from layerzoo.errors import DataRefused, Refusal, bad_value, unknown_name
from layerzoo.foreign import HEAD, check_beginning, check_name
from layerzoo.paths import cache_folder

if TYPE_CHECKING:
    from typing import BinaryIO

    from torch import nn

_ROOT = Path(__file__).parent
_SHIPPED = _ROOT.parent / "checkpoints" if (_ROOT.parent / "pyproject.toml").is_file() else _ROOT / "_checkpoints"
_INDEX, _FORMAT = "index.json", 1
_ENTRY = {
    "manifest_sha256": str, "sources": list, "bytes": int, "model": str, "recipe": str, "metrics": dict, "num_classes": int,
    "input_size": list}
_NAME = re.compile(r"(?!index\.json$)[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_PATIENCE = 600.0  # seconds to wait for another process that pulls the same


class CacheRefused(Refusal):
    """A cache folder that cannot be written."""

    exit_code = 74


def load(address: str | Path) -> nn.Module:
    """The model of a checkpoint, in eval mode on the CPU, with its manifest (classes, mean, std, metrics) as `.manifest`.

    Args:
        address: a name of `list_checkpoints()`, "name@sha256" with 8 or more digits of its manifest's hash, a folder,
            "https://..." of such a folder, or "hf://org/repo[@revision]".
    Raises:
        ValueError: for an unknown name or address.
        DataRefused: for an address that does not answer, or files that are not what they should be.
        SecurityRefused: for a pickle, an archive, a device, or a link out of the folder, by its name or first bytes; it is not opened.
    """
    return checkpoint.load_checkpoint(pull(address))


def pull(address: str | Path) -> Path:
    """The verified folder of a checkpoint on this machine; arguments and errors as for `load`."""
    address = str(address)
    if re.match("[a-z0-9+]+://", address):
        check_name(re.split("[?#]", address)[0])
        return _fetch(address)
    if "/" in address:
        return _checked(Path(address), None)
    name, pinned, pin = address.partition("@")
    if name in list_checkpoints():
        return _pull_published(name, pin if pinned else None)
    if Path(address).exists():
        return _checked(Path(address), None)
    check_name(address)
    raise unknown_name("checkpoint", address, list_checkpoints(), "layerzoo.list_checkpoints()")


def list_checkpoints() -> list[str]:
    """Names of the published checkpoints, sorted: of the index in $LAYERZOO_CHECKPOINTS, else of layerzoo's own."""
    return sorted(_read_index(_root()))


def published(name: str) -> dict:
    """The entry of the index. Raises ValueError for an unknown name."""
    entries = _read_index(_root())
    if name not in entries:
        raise unknown_name("checkpoint", name, entries, "layerzoo.list_checkpoints()")
    return entries[name]


def publish(folder: str | Path, name: str, root: str | Path) -> dict:
    """Copy a verified folder to root/name and enter it in root/index.json. A name never changes its content. One process at a time.

    Returns:
        The entry.
    Raises:
        ValueError: for a folder that does not verify, a name that is not plain, or one already published with other content.
    """
    source, root = Path(folder), Path(root)
    if not _NAME.fullmatch(name):
        raise bad_value("checkpoint name", got=repr(name), expected="letters, digits, '.', '_' and '-'", do="Choose a plain name.")
    manifest = verify_checkpoint(source)
    digest = _digest(manifest)
    entries = _read_index(root) if (root / _INDEX).exists() else {}
    known = entries.get(name, {})
    if known.get("manifest_sha256", digest) != digest:
        raise bad_value("checkpoint name", got=f"{name!r}, published with other content", expected="a new name", do="Choose another name.")
    if not _is_valid(root / name, digest):
        with staged(root / name) as temp:
            for file in (*FILES, MANIFEST):
                write_synced(temp / file, (source / file).read_bytes())
    sources = list(dict.fromkeys([name, *known.get("sources", ())]))
    entry = {
        "manifest_sha256": digest, "sources": sources, "model": manifest["model"], "recipe": manifest["recipe_name"],
        "metrics": manifest["metrics"], "num_classes": len(manifest["classes"]), "input_size": manifest["input_size"],
        "bytes": sum(file["bytes"] for file in manifest["files"].values())}
    temp = root / f".{_INDEX}.new"
    temp.unlink(missing_ok=True)  # of a publication that died
    write_synced(temp, checkpoint.to_json({"format": _FORMAT, "checkpoints": entries | {name: entry}}))
    os.replace(temp, root / _INDEX)
    return entry


def _pull_published(name: str, pin: str | None) -> Path:
    """From the first source that has it; the cache comes first."""
    entry = published(name)
    digest = entry["manifest_sha256"]
    if pin is not None and not (re.fullmatch("[0-9a-f]{8,64}", pin) and digest.startswith(pin)):
        got, expected = "a pin that does not fit", f"8 or more first digits of {digest}"
        raise bad_value(f"{name}@{pin}", got=got, expected=expected, do="Correct it, or leave it out.")
    if _is_valid(_cache() / digest, digest):
        return _cache() / digest
    failed = []
    for source in entry["sources"]:
        try:
            return _fetch(source, digest) if "://" in source else _checked(_root() / source, digest)
        except DataRefused as error:
            failed.append(f"{source} ({error})")
    got = "; ".join(failed) or "no source"
    raise refused(f"checkpoint {name}", got=got, expected="one source that has it", do="Try again later, or correct the index.")


def _checked(folder: Path, digest: str | None) -> Path:
    _check_digest(folder, _digest(verify_checkpoint(folder)), digest)
    return folder


def _fetch(address: str, digest: str | None = None) -> Path:
    if address.startswith("hf://"):
        return _fetch_from_hf(address, digest)
    check_address(address)
    if _is_offline():
        raise refused(address, got="LAYERZOO_OFFLINE=1", expected="a connection", do="Unset it, or give a folder or a name once pulled.")
    base = address.rstrip("/")
    data = download(f"{base}/{MANIFEST}", LARGEST[MANIFEST], "a manifest", b"".join)
    found = hashlib.sha256(data).hexdigest()
    _check_digest(base, found, digest)
    manifest = checkpoint.parse_manifest(data, f"{base}/{MANIFEST}")
    target = _cache() / found
    with _turn(target):
        return target if _is_valid(target, found) else _fill(target, base, manifest, data)


def _fill(target: Path, base: str, manifest: dict, data: bytes) -> Path:
    """Pull the files that the manifest states, which is also given as its bytes."""
    try:
        if os.path.lexists(target):  # altered since it was pulled
            vanish(target)
        with staged(target) as temp:
            for name in FILES:
                _download_file(f"{base}/{name}", manifest["files"][name], temp / name)
            write_synced(temp / MANIFEST, data)
    except (OSError, Refusal) as error:
        if _is_valid(target, target.name):  # another process was first
            return target
        if isinstance(error, Refusal):
            raise
        do = "Free space there, or set LAYERZOO_CACHE to another folder."
        raise bad_value(f"cache {target.parent}", got=str(error), expected="a folder to write in", do=do, kind=CacheRefused) from error
    return target


def _fetch_from_hf(address: str, digest: str | None) -> Path:
    """The manifest first, which says how large the others may be."""
    from huggingface_hub import HfApi, snapshot_download

    repo, _, revision = address.removeprefix("hf://").partition("@")
    options = {"revision": revision or None, "local_files_only": _is_offline()}
    try:
        if not _is_offline():
            about = HfApi().model_info(repo, revision=options["revision"], files_metadata=True)
            sizes = {file.rfilename: file.size for file in about.siblings}
            _check_size(address, MANIFEST, sizes, LARGEST[MANIFEST])
            path = Path(snapshot_download(repo, allow_patterns=[MANIFEST], **options), MANIFEST)
            for name, stated in checkpoint.parse_manifest(path.read_bytes(), path)["files"].items():
                _check_size(address, name, sizes, stated["bytes"])
        folder = Path(snapshot_download(repo, allow_patterns=[*FILES, MANIFEST], **options))
    except Refusal:
        raise
    except Exception as error:  # those of its HTTP client have no base in common with its own
        raise refused(address, got=str(error), expected="a repository that can be read", do=CHECK) from error
    return _checked(folder, digest)


def _check_size(address: str, name: str, sizes: dict[str, int], most: int) -> None:
    size = sizes.get(name)
    if size is None or size > most:
        got = "no such file" if size is None else f"{size} bytes"
        raise refused(f"{address}/{name}", got=got, expected=f"a file of at most {most} bytes", do=CHECK)


def _check_bytes(url: str, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same pieces, once the first has shown that no pickle and no archive comes."""
    head = b""
    for piece in pieces:
        if len(head) < HEAD:
            head += piece[:HEAD]
            check_beginning(url, head)
        yield piece


def _download_file(url: str, stated: dict, path: Path) -> None:
    def write(pieces: Iterator[bytes]) -> tuple[int, str]:
        digest = hashlib.sha256()
        with open(path, "wb") as file:
            for piece in _check_bytes(url, pieces):
                digest.update(piece)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        return path.stat().st_size, digest.hexdigest()

    size, digest = download(url, stated["bytes"], f"{stated['bytes']}, as {MANIFEST} states", write)
    if size != stated["bytes"]:
        raise refused(url, got=f"{size} bytes", expected=f"{stated['bytes']}, as {MANIFEST} states", do=CHECK)
    if digest != stated["sha256"]:
        got, expected = f"SHA-256 {digest[:12]}...", f"{stated['sha256'][:12]}..., as {MANIFEST} states"
        raise refused(url, got=got, expected=expected, do=CHECK)


@contextmanager
def _turn(target: Path) -> Iterator[None]:
    """One process at a time for each target. A courtesy: where nothing can be locked, each pulls for itself."""
    with ExitStack() as stack:
        with suppress(OSError):
            cache_folder().mkdir(parents=True, exist_ok=True)
            _wait(stack.enter_context(open(cache_folder() / ".pulls", "ab")), target)
        yield


def _wait(locks: BinaryIO, target: Path) -> None:
    """Lock the one byte that stands for the target; what a dead process had locked is free."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        try:
            fcntl.lockf(locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, int(target.name[:15], 16))
            return
        except (BlockingIOError, PermissionError):
            time.sleep(0.05)
    warnings.warn(f"{target}: another process pulls it for more than {_PATIENCE:.0f} s; it is pulled here as well.", stacklevel=2)


def _is_valid(folder: Path, digest: str) -> bool:
    """Whether this verified checkpoint stands there."""
    try:
        return _digest(verify_checkpoint(folder)) == digest
    except Refusal:
        return False


def _digest(manifest: dict) -> str:
    """SHA-256 of manifest.json."""
    return hashlib.sha256(checkpoint.to_json(manifest)).hexdigest()


def _check_digest(where: object, found: str, digest: str | None) -> None:
    if found != (digest or found):
        got, expected = f"a manifest with SHA-256 {found[:12]}...", f"{digest[:12]}..., as the index states"
        raise refused(where, got=got, expected=expected, do=CHECK)


def _root() -> Path:
    return Path(os.environ.get("LAYERZOO_CHECKPOINTS") or _SHIPPED)


def _cache() -> Path:
    return cache_folder() / "checkpoints"


def _is_offline() -> bool:
    return os.environ.get("LAYERZOO_OFFLINE", "0") not in ("", "0")


def _read_index(root: Path) -> dict[str, dict]:
    path = root / _INDEX
    if not path.is_file():
        do = "Set LAYERZOO_CHECKPOINTS to a folder that has one, or unset it."
        raise refused(path, got="no file", expected="an index of checkpoints", do=do)
    index = checkpoint.from_json(path.read_bytes(), path)
    if index.get("format") != _FORMAT or not isinstance(index.get("checkpoints"), dict):
        raise refused(path, got=f"format {index.get('format')!r}", expected=f"format {_FORMAT} with checkpoints", do="Upgrade layerzoo.")
    for name, entry in index["checkpoints"].items():
        if not (_NAME.fullmatch(name) and _is_entry(entry)):
            expected = "a plain name with the fields that help(layerzoo.hub) lists"
            raise refused(path, got=f"the entry {name!r}", expected=expected, do="Correct it.")
    return index["checkpoints"]


def _is_entry(entry: object) -> bool:
    if not (isinstance(entry, dict) and all(type(entry.get(key)) is kind for key, kind in _ENTRY.items())):
        return False
    sources_fit = all(isinstance(s, str) and (re.match("(https?|hf)://", s) or _NAME.fullmatch(s)) for s in entry["sources"])
    return sources_fit and bool(re.fullmatch("[0-9a-f]{64}", entry["manifest_sha256"]))
