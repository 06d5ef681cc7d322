"""Lose the power at any moment of an action: every tree that a file system may then hold, by the letter of POSIX.

A file holds what it held when it was last synced; of what was written since there is all, nothing, a part, or zeros. A folder's entries are
those of any moment since it was last synced, whatever the others' are. What stood there before the action was on the disk.
"""

import builtins
import io
import itertools
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

_CHANGES = ("mkdir", "rename", "replace", "unlink", "rmdir")
UNSYNCED = (lambda data: data, lambda data: b"", lambda data: data[: len(data) // 2], lambda data: bytes(len(data)))  # noqa: E731


class Record:
    """What could be left at each moment: for each folder its possible entries, for each file what is synced and what is written."""

    def __init__(self, root: Path):
        self.root, self.lock = root, threading.RLock()
        self.folders: dict[int, list[dict[str, int]]] = {}
        self.files: dict[int, tuple[bytes | None, bytes]] = {}
        self.look()
        self.folders = {inode: entries[-1:] for inode, entries in self.folders.items()}
        self.files = {inode: (data, data) for inode, (_, data) in self.files.items()}
        self.moments: list[tuple[dict, dict]] = []

    def look(self) -> None:
        folders = [self.root]
        while folders:
            folder = folders.pop()
            inside = [*os.scandir(folder)]
            entries = {entry.name: entry.inode() for entry in inside}
            known = self.folders.setdefault(os.stat(folder).st_ino, [{}])
            if known[-1] != entries:
                known.append(entries)
            for entry in inside:
                if entry.is_dir():
                    folders.append(entry.path)
                    continue
                with suppress(FileNotFoundError):  # safetensors gives its file another name whenever it likes: what it held is under that
                    self.files[entry.inode()] = self.files.get(entry.inode(), (None, b""))[0], Path(entry).read_bytes()

    def note(self) -> None:
        self.look()
        self.moments.append(({inode: [*entries] for inode, entries in self.folders.items()}, dict(self.files)))

    def synced(self, handle: int) -> None:
        found = os.fstat(handle)
        if stat.S_ISDIR(found.st_mode):
            self.folders[found.st_ino] = self.folders[found.st_ino][-1:]
        elif found.st_ino in self.files:
            self.files[found.st_ino] = (self.files[found.st_ino][1],) * 2

    def trees(self, moments: list) -> Iterator[dict]:
        """Each different tree, as {name: bytes or tree}."""
        seen, top = set(), os.stat(self.root).st_ino
        for (folders, files), left in itertools.product(moments, UNSYNCED):
            for tree in _trees(top, folders, files, left):
                key = repr(tree)
                if key not in seen:
                    seen.add(key)
                    yield tree


def _trees(inode: int, folders: dict, files: dict, left: Callable) -> Iterator[dict]:
    for entries in folders[inode]:
        parts = []
        for child in entries.values():
            synced, written = files.get(child, (b"", b""))
            parts.append([*_trees(child, folders, files, left)] if child in folders else [written if synced == written else left(written)])
        for chosen in itertools.product(*parts):
            yield dict(zip(entries, chosen))


def recorded(root: Path, action: Callable[[], object], patch) -> Record:
    """Run `action`, which changes files below `root` alone, and note what each call that changes or syncs them leaves possible.

    Args:
        root: a folder.
        action: what to record.
        patch: pytest's monkeypatch.
    """
    record = Record(root)
    record.note()
    create, sync = builtins.open, os.fsync

    def noted(function):
        def call(*args, **options):
            with record.lock:
                record.note()
                try:
                    return function(*args, **options)
                finally:
                    record.note()
        return call

    def synced(handle):
        with record.lock:
            record.note()
            sync(handle)
            record.synced(handle)
            record.note()

    with patch.context() as now:
        for name in _CHANGES:
            now.setattr(os, name, noted(getattr(os, name)))
        now.setattr(os, "fsync", synced)
        opened = lambda path, mode="r", *args, **options: (noted(create) if set(mode) & set("wax+") else create)(path, mode, *args, **options)  # noqa: E731
        now.setattr(builtins, "open", opened)
        now.setattr(io, "open", opened)
        action()
    record.note()
    return record


def lay(tree: dict, folder: Path) -> Path:
    """The tree as files in a new folder."""
    folder.mkdir()
    for name, inside in tree.items():
        if isinstance(inside, dict):
            lay(inside, folder / name)
        else:
            (folder / name).write_bytes(inside)
    return folder
