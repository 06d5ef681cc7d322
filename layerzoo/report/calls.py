"""Let an action die or fail at the k-th system call that changes or syncs a file, for every k: the windows that random kills miss.

The kernel stops each such call, of any thread and of any library, be it written in Python, C++ or Rust, and asks here (seccomp's user notification).
On Linux on x86-64 alone.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import os
import platform
import select
import signal
import socket
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PATIENCE = 60  # seconds without a call
_AT = -100  # in place of a folder's handle: the current folder
_WRITES = ("write", "pwrite64", "writev", "sendfile")  # that are done by halves
_FAILING = (*_WRITES, "copy_file_range", "fsync", "fdatasync", "ftruncate", "fallocate")
_CALLS = {  # numbers on x86-64, and which arguments are a folder's handle and a path
    1: ("write", 0, None), 18: ("pwrite64", 0, None), 20: ("writev", 0, None), 74: ("fsync", 0, None), 75: ("fdatasync", 0, None),
    77: ("ftruncate", 0, None), 285: ("fallocate", 0, None), 40: ("sendfile", 0, None), 326: ("copy_file_range", 2, None),
    2: ("open", None, 0), 257: ("openat", 0, 1), 85: ("creat", None, 0), 76: ("truncate", None, 0), 82: ("rename", None, 0), 264: ("renameat", 0, 1),
    316: ("renameat2", 0, 1), 83: ("mkdir", None, 0), 258: ("mkdirat", 0, 1), 84: ("rmdir", None, 0), 87: ("unlink", None, 0), 263: ("unlinkat", 0, 1),
    86: ("link", None, 1), 265: ("linkat", 2, 3), 88: ("symlink", None, 1), 266: ("symlinkat", 1, 2)}
_NOTICE, _ANSWER = struct.Struct("=QIIiIQ6Q"), struct.Struct("=QqiI")
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_SECCOMP, _PIDFD_GETFD, _NO_NEW_PRIVILEGES = 317, 438, 38


@cache
def is_possible() -> bool:
    """Whether this kernel lets a process be watched so, which containers may forbid: one is killed in the middle of a write."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    with tempfile.TemporaryDirectory() as root, suppress(OSError):
        path = Path(root, "a")
        return killed_at(3, lambda: path.write_bytes(b"1234"), path.parent).killed and path.read_bytes() == b"12"
    return False


@dataclass
class Ended:
    """How an action ended.

    Fields:
        calls: names of the calls that were made, with the path of each; a write counts twice, before it and in its middle.
        code: exit code of the process, -9 where it was killed at the k-th call.
        said: what the action raised, as text; empty where it raised nothing.
    """

    calls: list[tuple[str, Path]]
    code: int
    said: str

    @property
    def killed(self) -> bool:
        """Whether it came to the k-th call. Raises ChildProcessError, with what it said, if it failed before."""
        if self.code not in (0, -signal.SIGKILL):
            raise ChildProcessError(self.said or self.code)
        return self.code != 0


def killed_at(k: int, action: Callable[[], object], *roots: Path, before: Callable[[], object] = lambda: None) -> Ended:
    """Run `action` in a fork that is killed at its k-th call on a file below one of the folders, a write when half of it is done.

    Args:
        k: from 1; 0 for never.
        action: what to run.
        roots: folders.
        before: runs first in the fork, and whole.
    """
    return _run(k, action, roots, before, None)


def failing_at(k: int, action: Callable[[], object], *roots: Path, before: Callable[[], object] = lambda: None) -> Ended:
    """The same with an input/output error of the k-th write or sync."""
    return _run(k, action, roots, before, errno.EIO)


def _run(k: int, action: Callable, roots: tuple[Path, ...], before: Callable, error: int | None) -> Ended:
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        _act(action, before, theirs)
    theirs.close()
    with ours, ExitStack() as held:
        said, handles, *_ = socket.recv_fds(ours, 2**15, 1)
        for handle in handles:
            held.callback(os.close, handle)
        made: list[tuple[str, Path]] = []
        if handles:
            try:
                _watch(handles[0], child, k, made, tuple(f"{root.resolve()}/" for root in roots), error)
            except OSError:  # the kernel does not lend what the process has open
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                raise
            if not select.select([ours], [], [], PATIENCE)[0]:  # it neither ends nor says anything
                os.kill(child, signal.SIGKILL)
            with suppress(ConnectionResetError):
                said = ours.recv(2**15)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return Ended(made, code, said.decode())


def _act(action: Callable, before: Callable, line: socket.socket) -> None:
    code = 1
    try:
        before()
        listener = _listen()
        socket.send_fds(line, [b"."], [listener])
        os.close(listener)
        action()
        code = 0
    except BaseException as error:  # of any kind, told to the parent
        line.send(f"{type(error).__name__}: {error}".encode()[:2**15])
    finally:
        os._exit(code)


def _listen() -> int:
    """From here on each of the calls waits for an answer, which is asked for at this handle."""
    numbers = [*_CALLS]
    steps = [(0x20, 0, 0, 0)]
    steps += [(0x15, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
    steps += [(0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x7FC00000)]  # let it pass; ask
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(code)))
    _kernel().prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    return _handle("seccomp", _SECCOMP, 1, 8, program)


def _watch(listener: int, child: int, k: int, made: list, roots: tuple[str, ...], error: int | None) -> None:
    """Answer until the process is gone or killed."""
    asked = select.poll()
    asked.register(listener, select.POLLIN)
    while (events := asked.poll(1000 * PATIENCE)) and events[0][1] & select.POLLIN:
        notice = bytearray(_NOTICE.size)
        try:
            fcntl.ioctl(listener, _RECEIVE, notice)
        except OSError:  # it died just now
            continue
        number, thread, _, call, _, _, *given = _NOTICE.unpack(notice)
        failing = 0
        for point in _points(thread, call, given, roots, error):
            made.append(point)
            if len(made) == k and error is None:
                if point[0].startswith("half"):
                    _half(thread, child, call, given)
                os.kill(child, signal.SIGKILL)
                return  # without an answer, after which the call could still be made
            if len(made) == k:
                failing = -error
        with suppress(OSError):
            fcntl.ioctl(listener, _SEND, _ANSWER.pack(number, 0, failing, 0 if failing else 1))


def _points(thread: int, call: int, given: list[int], roots: tuple[str, ...], error: int | None) -> Iterator[tuple[str, Path]]:
    """Where it can die or fail in a call."""
    name, handle, path = _CALLS[call]
    if name in ("open", "openat") and not given[1 if name == "open" else 2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
        return
    at = ctypes.c_int(given[handle] & 0xFFFFFFFF).value if handle is not None else _AT
    with suppress(OSError):
        where = os.readlink(f"/proc/{thread}/cwd" if at == _AT else f"/proc/{thread}/fd/{at}")
        if path is not None:
            where = os.path.join(where, os.fsdecode(_read(thread, given[path], 4096).split(b"\0")[0]))
        if not f"{where}/".startswith(roots) or (error and name not in _FAILING):
            return
        yield name, Path(where)
        if name in _WRITES and not error:
            yield f"half a {name}", Path(where)


def _half(thread: int, child: int, call: int, given: list[int]) -> None:
    """Do the first half of a write for it, on the same open file."""
    name, process = _CALLS[call][0], os.pidfd_open(child)
    file = _borrowed(process, given[0])
    if name == "sendfile":
        source = _borrowed(process, given[1])
        data = os.pread(source, os.fstat(source).st_size, 0)
        os.close(source)
    else:
        parts = [given[1:3]]
        if name == "writev":
            words = array.array("Q", _read(thread, given[1], 16 * given[2]))
            parts = [*zip(words[::2], words[1::2])]
        data = b"".join(_read(thread, start, size) for start, size in parts)
    at = given[3] if name == "pwrite64" else os.lseek(file, 0, os.SEEK_CUR)
    os.pwrite(file, data[: len(data) // 2], at)
    os.close(file)
    os.close(process)


def _borrowed(process: int, handle: int) -> int:
    return _handle("pidfd_getfd", _PIDFD_GETFD, process, ctypes.c_int(handle), 0)


def _handle(name: str, number: int, *given: object) -> int:
    """What a system call gives that Python has no function for."""
    handle = _kernel().syscall(number, *given)
    if handle < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), name)
    return handle


def _kernel() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _read(thread: int, start: int, size: int) -> bytes:
    with open(f"/proc/{thread}/mem", "rb", 0) as memory:
        memory.seek(start)
        return memory.read(size)
