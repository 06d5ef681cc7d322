"""Savers under the same faults: `python -m layerzoo.report.bench_faults --out faults.csv`.

Each row says how many tries ended how: `newest` (the last save that was said to be done, or the one at work), `older` (an earlier one, taken by
itself), `refused` (an error, and the user has to look for another file), `wrong` (values that nobody ever saved, without a word).
The note says what else there was: files left, errors of the saver and how many of them had the path in them, or nobody who was told.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path, PurePosixPath

import torch

from layerzoo.quiet import quiet
from layerzoo.report.calls import Ended, failing_at, killed_at
from layerzoo.report.measured import new_path, write_rows
from layerzoo.report.savers import SAVERS, state

FLOATS = 3_000_000  # 12 MB, while a save is killed at random; 100 kB where files are damaged
SMALL = 4000
ENDS = ("newest", "older", "refused", "wrong")


class Payload:
    """An object whose loading makes a folder, where it runs code."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def bench_faults(tries: int) -> list[dict]:
    """One row for each fault and saver.

    Args:
        tries: random kills of each saver and saves of two at once, of which there are three times as many;
            bits flipped and lengths cut are ten times and five times as many.
    """
    rows = []
    with tempfile.TemporaryDirectory() as root:
        for fault, name, ends in _faults(Path(root), tries):
            rows.append({"fault": fault, "saver": name, "tries": sum(ends[end] for end in ENDS)} | {end: ends[end] for end in ENDS} | {"note": _note(ends)})
            print("  ".join(f"{value!s:>9}" if i > 1 else f"{value:28}" for i, value in enumerate(rows[-1].values())), flush=True)
    return rows


def _note(ends: Counter) -> str:
    """What is to be said beside the ends."""
    files, errors, silent = ends["left"], ends["told"], ends["silent"]
    parts = [f"{files} files left in $TMPDIR"] if files else []
    parts += [f"{errors} error{'s' * (errors > 1)}, {ends['named']} with the path"] if errors else []
    return "; ".join([*parts, *([f"nobody was told, {silent} of {sum(ends[end] for end in ENDS)}"] if silent else [])])


def _faults(root: Path, tries: int) -> Iterator[tuple[str, str, Counter]]:
    kinds: dict[str, Callable[[str, Path], Counter]] = {
        "killed in a save": lambda name, home: killed(name, home, tries),
        "killed, $TMPDIR elsewhere": lambda name, home: killed(name, home, tries, elsewhere=True),
        "killed at each call of a save": died, "killed at each call, $TMPDIR elsewhere": lambda name, home: died(name, home, elsewhere=True),
        "EIO at each write and sync": unwritten, "EIO at each, $TMPDIR elsewhere": lambda name, home: unwritten(name, home, elsewhere=True),
        "two save into one place": lambda name, home: together(name, home, 3 * tries),
        "a bit flipped": lambda name, home: damaged(name, home, 10 * tries, _flip),
        "cut short": lambda name, home: damaged(name, home, 5 * tries, _cut),
        "file too large for the disk": lambda name, home: failing(name, home, _full),
        "no room, $TMPDIR elsewhere": lambda name, home: failing(name, home, _no_room),
        "a folder that is read-only": lambda name, home: failing(name, home, _read_only),
        "an object that is no value": refusing, "code in a checkpoint": attacked}
    for fault, call in kinds.items():
        for name in SAVERS:
            home = root / f"{fault} {name}".replace(" ", "-").replace("$", "")
            home.mkdir()
            yield fault, name, call(name, home)
            shutil.rmtree(home)


def killed(name: str, home: Path, tries: int, elsewhere: bool = False) -> Counter:
    """SIGKILL at random moments of a loop of saves; files that are left beside what is kept."""
    draw, ends = random.Random(0), Counter()
    with _temporary(home, elsewhere) as temporary:
        for number in range(tries):
            folder = home / str(number)
            folder.mkdir()
            words = [sys.executable, "-m", "layerzoo.report.bench_faults", "--save", name, "--into", str(folder)]
            with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": temporary, "OMP_NUM_THREADS": "1"}) as child:
                said = [int(child.stdout.readline()) for _ in range(2)]
                time.sleep(draw.uniform(0, 0.3))
                child.kill()
                said += map(int, child.stdout.read().split())
            ends[_end(name, folder, range(said[-1], said[-1] + 2))] += 1
            shutil.rmtree(folder)
        ends["left"] = sum(path.stat().st_size > 10**6 for path in Path(temporary).rglob("*"))
    return ends


def died(name: str, home: Path, elsewhere: bool = False) -> Counter:
    """SIGKILL before each call of a save that changes or syncs a file, and in the middle of each write, after two saves."""
    ends, k = Counter(), 1
    SAVERS[name]().imports()
    with _temporary(home, elsewhere) as temporary:
        while _interrupted(killed_at, k, name, home / str(k), Path(temporary), steps=3).killed:
            ends[_end(name, home / str(k), range(2, 4))] += 1
            k += 1
        ends["left"] = len(os.listdir(temporary))
    return ends


def unwritten(name: str, home: Path, elsewhere: bool = False) -> Counter:
    """An input/output error of each write and sync of a save, one at a time, after one save."""
    ends = Counter()
    SAVERS[name]().imports()
    with _temporary(home, elsewhere) as temporary:
        for k in count(1):
            folder = home / str(k)
            ended = _interrupted(failing_at, k, name, folder, Path(temporary), steps=2)
            if len(ended.calls) < k:
                return ends
            ends[found := _end(name, folder, range(2, 3))] += 1
            ends.update(told=ended.code != 0, named=str(folder) in ended.said, silent=ended.code == 0 and found != "newest")


def _interrupted(way: Callable[..., Ended], k: int, name: str, folder: Path, temporary: Path, steps: int) -> Ended:
    """How the last of these saves ended, in a process that the harness watches from the end of the last but one on."""
    folder.mkdir()
    saver = SAVERS[name]()

    def before() -> None:
        tempfile.tempdir = str(temporary)
        for step in range(1, steps):
            saver.save(folder, state(step, SMALL))

    return way(k, lambda: saver.save(folder, state(steps, SMALL)), folder, temporary, before=before)


def together(name: str, home: Path, tries: int) -> Counter:
    """Two processes save five times each, at the same time and into the same place, as two runs that were given one folder."""
    ends, fork = Counter(), multiprocessing.get_context("fork")
    SAVERS[name]().imports()
    for number in range(tries):
        (folder := home / str(number)).mkdir()
        start, lines = fork.Barrier(2), [fork.Pipe(duplex=False) for _ in range(2)]
        writers = [fork.Process(target=_write, args=(name, folder, writer, start, line)) for writer, (_, line) in enumerate(lines)]
        for writer in writers:
            writer.start()
        for writer, (line, _) in zip(writers, lines):
            said = line.recv()
            writer.join()
            ends.update(told=said != "", named=str(folder) in said)
        ends[_end(name, folder, range(10, 12))] += 1
    return ends


def _write(name: str, folder: Path, writer: int, start: Barrier, line: Connection) -> None:
    """Save values that tell the step and the writer; what went wrong is said on the line."""
    saver = SAVERS[name]()
    start.wait()
    try:
        with saver.turn(folder):
            for step in range(1, 6):
                saver.save(folder, state(2 * step + writer, FLOATS // 10) | {"global_step": step})
        line.send("")
    except Exception as error:  # of any kind
        line.send(f"{type(error).__name__}: {error}")


def damaged(name: str, home: Path, tries: int, harm: Callable[[bytes, random.Random], bytes]) -> Counter:
    """A file of the newest is changed, after two saves."""
    draw, ends, saver = random.Random(0), Counter(), SAVERS[name]()
    for step in (1, 2):
        saver.save(home, state(step, 25_000))
    newest = saver.find(home).path
    files = sorted(path for path in newest.rglob("*") if path.is_file()) if newest.is_dir() else [newest]
    for number in range(tries):
        path = files[number % len(files)]
        whole = path.read_bytes()
        path.unlink()  # timm links files of one content
        path.write_bytes(harm(whole, draw))
        ends[_end(name, home, range(2, 3))] += 1
        path.write_bytes(whole)
    return ends


def failing(name: str, home: Path, trouble: Callable) -> Counter:
    """A save that cannot be done, after one that was: what is gone on from, and whether nobody was told."""
    with trouble(home) as begin:
        folder = home / "disk"
        saver, told = SAVERS[name](), False
        saver.save(folder, state(1, 500_000))
        with begin():
            try:
                saver.save(folder, state(2, 500_000))
            except (OSError, RuntimeError):
                told = True
        found = _end(name, folder, range(2, 3))
    return Counter({found: 1, "silent": int(not told and found != "newest")})


def refusing(name: str, home: Path) -> Counter:
    """A path among the values: refused when it is saved, which keeps what was saved before, or only when it is loaded."""
    saver = SAVERS[name]()
    saver.save(home, state(1, 1000))
    try:
        saver.save(home, state(2, 1000) | {"hyper_parameters": {"root": PurePosixPath("data")}})
    except ValueError:
        return Counter([_end(name, home, range(1, 2))])
    return Counter([_end(name, home, range(2, 3))])


def attacked(name: str, home: Path) -> Counter:
    """An object that runs code when it is loaded: `wrong` where it ran."""
    saver = SAVERS[name]()
    saver.save(home, state(1, 1000))
    path, ran = saver.find(home).path, home / "ran"
    target = path / "state.safetensors" if path.is_dir() else path
    target.unlink()
    torch.save({"state_dict": Payload(ran)}, target)
    end = _end(name, home, range(1, 2))
    return Counter(["wrong" if ran.exists() else end])


def _end(name: str, folder: Path, newest: range) -> str:
    try:
        step = SAVERS[name]().find(folder).step
    except Exception:  # of any kind, as a user would meet it
        return "refused"
    return "newest" if step in newest else "older" if 0 < step < newest.start else "wrong"


def _temporary(home: Path, elsewhere: bool) -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(dir="/dev/shm" if elsewhere else home)


def _flip(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1:]


def _cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data))]


@contextmanager
def _full(home: Path) -> Iterator[Callable]:
    """The system refuses any file above 1 MB."""
    (home / "disk").mkdir()

    @contextmanager
    def begin() -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    yield begin


@contextmanager
def _mounted(home: Path) -> Iterator[Path]:
    disk = home / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


@contextmanager
def _no_room(home: Path) -> Iterator[Callable]:
    """A disk of 6 MB for saves of 2 MB, filled but for 1 MB; temporary files lie on another."""
    with _mounted(home) as disk:
        @contextmanager
        def begin() -> Iterator[None]:
            filler = disk / "filler"
            filler.write_bytes(bytes(shutil.disk_usage(disk).free - 10**6))
            yield
            filler.unlink()

        yield begin


@contextmanager
def _read_only(home: Path) -> Iterator[Callable]:
    with _mounted(home) as disk:
        @contextmanager
        def begin() -> Iterator[None]:
            subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
            try:
                yield
            finally:
                subprocess.run(["mount", "-o", "remount,rw", disk], check=True)

        yield begin


def costs(rounds: int) -> list[dict]:
    """Seconds of a save and of a load, and bytes on the disk, as ratios to torch.save; medians over rounds, in which savers alternate."""
    rows = []
    for floats in (250_000, 25_000_000):
        with tempfile.TemporaryDirectory() as root:
            savers = {name: (kind(), Path(root, name)) for name, kind in SAVERS.items()}
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in savers}
            for _, folder in savers.values():
                folder.mkdir()
            for step in range(1, rounds + 2):
                kept = state(step, floats)
                for name, (saver, folder) in random.sample(list(savers.items()), len(savers)):
                    began = time.perf_counter()
                    saver.save(folder, kept)
                    saved = time.perf_counter()
                    saver.find(folder)
                    times[name].append((saved - began, time.perf_counter() - saved))
            for name, own in times.items():
                save, load = (statistics.median(a[i] / b[i] for a, b in zip(own[1:], times["torch.save"][1:])) for i in range(2))
                size = sum({found.st_ino: found.st_size for path in savers[name][1].rglob("*") if path.is_file() for found in [path.stat()]}.values())
                rows.append({"saver": name, "MB": floats * 4 / 1e6, "save": f"{save:.2f}", "load": f"{load:.2f}", "bytes": f"{size / (floats * 4):.2f}"})
                print("  ".join(f"{value!s:>10}" for value in rows[-1].values()), flush=True)
    return rows


def main() -> None:
    """Print every row as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=30, help="kills of each saver; 30")
    parser.add_argument("--rounds", type=int, default=9, help="of each save that is timed; 9")
    parser.add_argument("--out", type=Path, help="a new .csv for the faults; costs go beside it, to NAME-costs.csv")
    parser.add_argument("--save", help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    if args.save:
        saver = SAVERS[args.save]()
        for step in count(1):
            saver.save(args.into, state(step, FLOATS))
            print(step, flush=True)
    out = args.out and new_path(args.out)
    found, prices = bench_faults(args.tries), costs(args.rounds)
    if out:
        write_rows(found, out)
        write_rows(prices, out.with_name(f"{out.stem}-costs.csv"))


if __name__ == "__main__":
    main()
