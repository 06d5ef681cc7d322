"""The harness of deaths and failures at system calls: it sees what Python, C++ and Rust do to files, and stops it where it says."""

import os
import subprocess
from contextlib import suppress

import pytest
import torch
from safetensors.torch import save_file

from layerzoo.report import bench_faults, calls
from layerzoo.report.calls import failing_at, killed_at
from layerzoo.report.savers import SAVERS, Found, Torch

pytestmark = pytest.mark.skipif(not calls.is_possible(), reason="this kernel lets no process be watched call by call")


def replace(path):
    part = path.with_name("part")
    part.write_bytes(b"12345678")
    os.replace(part, path)


def test_it_dies_at_each_call_and_in_the_middle_of_a_write(tmp_path):
    left, k, killed = [], 0, True
    while killed:
        k += 1
        path = tmp_path / str(k) / "a"
        path.parent.mkdir()
        path.write_bytes(b"old")
        ended = killed_at(k, lambda path=path: replace(path), path.parent)
        killed = ended.killed
        left.append({file.name: file.read_bytes() for file in path.parent.iterdir()})
    old = {"a": b"old"}
    assert left == [old, old | {"part": b""}, old | {"part": b"1234"}, old | {"part": b"12345678"}, {"a": b"12345678"}]
    assert [name for name, _ in ended.calls] == ["openat", "write", "half a write", "rename"] and ended.code == 0


@pytest.mark.parametrize("write", [
    lambda path: torch.save(torch.ones(1000), path), lambda path: save_file({"a": torch.ones(1000)}, path),
    lambda path: subprocess.run(["cp", "/proc/self/status", path], check=True)], ids=["C++", "Rust", "another program"])
def test_it_sees_what_other_languages_write(tmp_path, write):
    written = [path for name, path in killed_at(0, lambda: write(tmp_path / "a"), tmp_path).calls if name.endswith(("write", "writev", "copy_file_range"))]
    assert written and all(path.parent == tmp_path for path in written)
    assert killed_at(1, lambda: write(tmp_path / "b"), tmp_path).code != 0 and not (tmp_path / "b").exists()


def test_only_writes_and_syncs_fail(tmp_path):
    def act():
        with open(tmp_path / "a", "wb", 0) as file:
            file.write(b"1")
            os.fsync(file.fileno())

    ends = [failing_at(k, act, tmp_path) for k in (1, 2, 3)]
    assert [(end.code, end.said) for end in ends] == [(1, "OSError: [Errno 5] Input/output error")] * 2 + [(0, "")]
    assert [name for name, _ in ends[2].calls] == ["write", "fsync"]
    assert failing_at(1, act, tmp_path / "elsewhere").calls == []


def test_it_tells_what_fails_before_the_call(tmp_path):
    ended = killed_at(1, lambda: 1 / 0, tmp_path)
    assert ended.code == 1
    with pytest.raises(ChildProcessError, match="^ZeroDivisionError: division by zero$"):
        _ = ended.killed
    ended = killed_at(1, lambda: None, tmp_path, before=lambda: int("x"))
    assert ended.code == 1 and ended.said.startswith("ValueError: invalid literal")


class Broken(Torch):
    """Its save goes over the old one byte by byte and says nothing of errors; what it finds is what is there."""

    name = "broken"

    def save(self, folder, kept):
        step = kept["global_step"]
        handle = os.open(folder / "last", os.O_CREAT | os.O_WRONLY)
        for _ in range(3):
            with suppress(OSError):
                os.write(handle, bytes([step]))
        os.close(handle)

    def find(self, folder):
        values = {*(folder / "last").read_bytes()}
        return Found(values.pop() if len(values) == 1 else -1, folder)


@pytest.fixture
def broken(monkeypatch):
    monkeypatch.setitem(SAVERS, "broken", Broken)
    return "broken"


def test_a_saver_that_mixes_two_saves_is_wrong(tmp_path, broken):
    ends = bench_faults.died(broken, tmp_path)
    assert {end: ends[end] for end in bench_faults.ENDS} == {"newest": 3, "older": 0, "refused": 0, "wrong": 4} and ends["left"] == 0


def test_a_saver_that_is_silent_about_the_disk_is_said_to_be(tmp_path, broken):
    ends = bench_faults.unwritten(broken, tmp_path)
    assert (ends["told"], ends["named"], ends["silent"], sum(ends[end] for end in bench_faults.ENDS)) == (0, 0, 3, 3)
    assert bench_faults._note(ends) == "nobody was told, 3 of 3"


def test_a_kernel_that_cannot_be_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(calls, "_SECCOMP", 9999)
    with pytest.raises(ChildProcessError, match="Function not implemented: 'seccomp'$"):
        _ = killed_at(1, lambda: replace(tmp_path / "a"), tmp_path).killed
    assert not [*tmp_path.iterdir()]


def test_a_kernel_that_lends_no_handles(tmp_path, monkeypatch):
    monkeypatch.setattr(calls, "_PIDFD_GETFD", 99999)
    with pytest.raises(OSError, match="'pidfd_getfd'"):
        killed_at(3, lambda: (tmp_path / "a").write_bytes(b"1234"), tmp_path)
    assert not calls.is_possible.__wrapped__()
