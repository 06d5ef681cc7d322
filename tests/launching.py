"""A SLURM of small scripts that write down how they were called, and a plan to render."""

import os
import shlex
import time
from pathlib import Path

import pytest

from layerzoo import cli
from layerzoo.launch.render import Plan

KEY = "q7RZx-planted-0123456789"


def run(capsys, *words: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    code = cli.main(list(words))
    return code, *capsys.readouterr()


def plan(folder="runs/.jobs/layerzoo-quickstart-1", recipe="quickstart", common=(), entries=((),), root="/data", python="/opt/bin/python"):
    free = ["trainer.accelerator", "trainer.strategy"]
    return Plan(recipe, "quickstart", free, list(common), [list(e) for e in entries], str(folder), str(root), python)


def command(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A folder of one's own to be in, and one of commands of SLURM that write down how they were called."""
    bin_folder, work = tmp_path / "bin", tmp_path / "work"
    bin_folder.mkdir()
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("PATH", f"{bin_folder}:{os.environ['PATH']}")
    monkeypatch.setattr(cli, "check_build", lambda *a: None)
    for name in ("sbatch", "scancel", "squeue", "sacct", "scontrol", "srun"):
        command(bin_folder, name, f'printf "%s\\n" {name} "$@" >>{shlex.quote(str(tmp_path))}/called')
    command(bin_folder, "sbatch", f"echo sbatch \"$@\" >>{shlex.quote(str(tmp_path))}/called; echo 1234")
    return bin_folder


def called(cluster: Path) -> list[str]:
    path = cluster.parent / "called"
    return path.read_text().splitlines() if path.exists() else []


def until(holds, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
