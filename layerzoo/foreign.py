"""What is never opened as a checkpoint: pickles, archives, devices and pipes, links that lead out of their folder.

Nothing is scanned for being harmless: scanners have been fooled, and a checkpoint of layerzoo needs none of these.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from layerzoo.errors import DataRefused, SecurityRefused, bad_value

_NAMES = re.compile(
    r"\.(pt|pth|ckpt|bin|pkl|pickle|joblib|dill|npy|npz|h5|hdf5|keras|pb|onnx|gguf|t7|mar|pt2"
    r"|zip|tar|tgz|gz|bz2|xz|zst|lz4|7z|rar|whl|egg)", re.IGNORECASE)
_SAFETENSORS = re.compile(rb".{4}\0{4}\{", re.DOTALL)  # the length of a header below 4 GiB, and its first sign
_BEGINNINGS = re.compile(
    rb"\x80[\x02-\x05]|PK(\x03\x04|\x05\x06|\x07\x08)|7z\xbc\xaf|\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|\x04\x22\x4d\x18|Rar!"  # pickle, archives
    rb"|\x93NUMPY|\x89HDF|\x7fELF|MZ|#!", re.DOTALL)
_TEXT = re.compile(rb"[\t\n\r -~]{8}")  # where the length of a header should stand: pickles of protocol 0, tar, scripts
HEAD = 16  # bytes, all that is ever read of a file to know its kind
_CONVERT = (
    "It was not opened. If you trust it, convert it in a script of your own: torch.load(PATH, weights_only=True), "
    "model.load_state_dict(...), layerzoo.checkpoint.save_checkpoint(FOLDER, model, ...).")


def check_name(where: str) -> None:
    """Raise SecurityRefused for a path or address that ends like a pickle, an archive or another library's file; asks no disk or server."""
    if _NAMES.fullmatch(Path(where).suffix):
        raise _refusal(where, f"a {Path(where).suffix} file")


def check_beginning(where: object, head: bytes) -> None:
    """Raise SecurityRefused for a file that begins like a pickle or an archive, whatever its name.

    Args:
        where: its path or address.
        head: its first bytes, HEAD or more.
    """
    begins = not _SAFETENSORS.match(head) and (_BEGINNINGS.match(head) or (str(where).endswith(".safetensors") and _TEXT.match(head)))
    if begins:
        raise _refusal(where, f"a file that begins with {head[:8]!r}, like a pickle or an archive")


def check_file(path: Path) -> None:
    """Raise SecurityRefused for a link out of its folder, a device, a pipe, or a beginning as in `check_beginning`; absent files pass."""
    real, folder = Path(os.path.realpath(path)), Path(os.path.realpath(path.parent))
    if not real.is_relative_to(folder) and real.parent != folder.parent.parent / "blobs":  # where Hugging Face's cache keeps them
        raise _refusal(path, f"a link to {real}", do="Put the file itself there.")
    if real.exists() and not real.is_file():
        raise _refusal(path, "no plain file", do="It was not opened. Put a file there.")
    if real.is_file():
        with open(real, "rb", buffering=0) as file:
            check_beginning(path, file.read(HEAD))


def refuse_file(path: Path) -> None:
    """Refuse what stands where the folder of a checkpoint should.

    Raises:
        SecurityRefused: as `check_name` and `check_file`.
        DataRefused: for any other file.
    """
    check_name(str(path))
    check_file(path)
    raise bad_value(
        str(path), got="a file", expected="the folder of a checkpoint", do="Give the folder it lies in, if it is of one.", kind=DataRefused)


def _refusal(where: object, got: str, do: str = _CONVERT) -> SecurityRefused:
    expected = "the folder of a checkpoint, in plain files, its weights as safetensors"
    return bad_value(str(where), got=got, expected=expected, do=do, kind=SecurityRefused)
