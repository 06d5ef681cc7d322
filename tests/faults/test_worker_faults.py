"""A worker that dies, stops, hangs, raises or finds no shared memory: the run ends with 1, in time, leaves no process, and goes on to the same bits."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from outcome import equal
from runs import folder, left

SCRIPT = Path(__file__).with_name("workers.py")
ENV = os.environ | {"OMP_NUM_THREADS": "1"}
IMAGES = r"\d+ of digits train ... \d+ of digits train"
SAID = {
    "killed": r"DataLoader worker \(pid(\(s\))? \d+\) (is killed by signal: Killed|exited unexpectedly)",  # torch's handler of signals may be first
    "stopped": rf"while waiting for {IMAGES}: no image for {{}} seconds\. Look at these files and the next, or lower data.num_workers\.\n$",
    "raises": rf"RuntimeError: while waiting for {IMAGES}: Caught RuntimeError in DataLoader worker process 1\.",
    "breaks": r"KeyError: .*Caught KeyError in DataLoader worker process 1\."}
SAID["stuck"] = SAID["stopped"]


def start(fault, runs, timeout=2, size=8, before=()):
    """(exit code, standard output and error, seconds since the fault); it is over, and nothing of its process group is left."""
    words = [*before, sys.executable, SCRIPT, fault, str(runs), str(timeout), str(size)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV, start_new_session=True) as child:
        began = time.monotonic()
        for line in child.stdout:  # which ends when no worker holds it
            if line.startswith("pid "):
                began = time.monotonic()
        said = child.stderr.read()
    seconds = time.monotonic() - began
    while left_over(child.pid) and time.monotonic() < began + seconds + 10:
        time.sleep(0.1)
    assert not left_over(child.pid)
    return child.returncode, said, seconds


def left_over(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    runs = tmp_path_factory.mktemp("unbroken")
    code, said, _ = start("none", runs)
    assert code == 0, said
    return left(runs)


@pytest.mark.slow
@pytest.mark.parametrize("fault", SAID)
def test_it_ends_is_named_and_goes_on(tmp_path, unbroken, fault):
    code, said, seconds = start(fault, tmp_path)
    assert code == 1 and re.search(SAID[fault].format(2), said), said
    assert seconds < 30 and (fault not in ("stopped", "stuck") or "Traceback" not in said), said
    assert [path.name for path in (folder(tmp_path) / "ckpt").iterdir()] == ["step-000000008"]
    code, said, _ = start("none", tmp_path)
    assert code == 0, said
    equal(left(tmp_path), unbroken)


@pytest.mark.release
@pytest.mark.parametrize("fault", ["stopped", "stuck"])
def test_as_it_is_shipped_it_takes_less_than_a_minute(tmp_path, fault):
    code, said, seconds = start(fault, tmp_path, timeout=40)
    assert code == 1 and re.search(SAID[fault].format(40), said) and seconds < 60, (seconds, said)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="mounts")
def test_no_shared_memory(tmp_path):
    """A container's own /dev/shm, of a quarter of a megabyte: a batch takes 0.2, of which several are made ahead."""
    small = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=256k tmpfs /dev/shm && exec "$@"', "sh"]
    if subprocess.run([*small, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no right to mount")
    code, said, _ = start("none", tmp_path, size=64, before=small)
    assert code == 1 and re.search(rf"while waiting for {IMAGES}: ", said) and "shared memory" in said, said
    code, said, _ = start("none", tmp_path, size=64)
    assert code == 0, said
