"""Launching by the command line with values full of what a shell would take for its own: refused, or passed on as the very words, never run."""

import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from launching import cluster, command  # noqa: F401
from test_launch_scripts import hostile, words_of

from layerzoo import cli
from layerzoo.launch.render import options
from layerzoo.launch.runs import parse_axis
from layerzoo.recipe import SHIPPED_RECIPES

NAMES = ("partition", "account", "qos", "constraint", "time", "mem", "gpu-type")  # stand without quotes in lines of #SBATCH
TEXTS = ("meta.summary", "meta.paper", "logging.project", "meta.command")  # keys of a recipe that take any text
LONE = ("\ud800", "\0", "\n", "\r", "\t", "\x1b[2J", "\u2028", "\u202e")  # what does not print


class Scene:
    """A folder to launch from, with an interpreter and SLURM that write down their words."""

    def __init__(self, root: Path, cluster: Path, monkeypatch, capsys):
        self.root, self.capsys, self.tally = root, capsys, {"refused": 0, "run": 0, "values": 0}
        self.draw = random.Random(os.environ.get("LAYERZOO_FUZZ_SEED", "0"))
        self.bin = cluster
        self.words = root / "words"
        for name in ("srun", "py thon'$(touch pwned)"):
            command(cluster, name, 'printf "%s\\0" "$@" >"$RECORD"')
        monkeypatch.setattr(sys, "executable", str(cluster / "py thon'$(touch pwned)"))

    def launch(self, verb: str, kind: str, recipe: str, overrides: list[str], axis: tuple[str, str] | None, more: list[str]) -> None:
        """Render by the command line; what is not refused is run by bash and must pass on the very words."""
        option, between = ("--array", ":") if verb == "launch" else ("--over", "=")
        over = [option, between.join(axis)] if axis else []
        given = [verb, recipe, "--cluster", kind, "--dry-run", *over, *(f"--{o}" for o in overrides), *more]
        self.tally["values"] += 1 + len(overrides) + len(more) + bool(axis)
        try:
            code = cli.main(given)
        except SystemExit as error:  # of argparse
            code = error.code
        text, said = self.capsys.readouterr()
        if code != 0:
            assert code == 2 and text == "" and said, given
            self.tally["refused"] += 1
            return
        self.tally["run"] += 1
        values = parse_axis(option, between.join(axis), between)[1] if axis else []
        Path(re.search(r">([\w./+=-]+)/exit-", text)[1]).mkdir(parents=True, exist_ok=True)
        last = len(values) - 1 if len(values) > 1 else 0
        env = {"PATH": f"{self.bin}:/usr/bin:/bin", "RECORD": str(self.words), "SLURM_JOB_ID": "1"}
        env |= {"SLURM_ARRAY_JOB_ID": "1", "SLURM_ARRAY_TASK_ID": str(last)} if last else {}
        done = subprocess.run(["bash", "-c", text], check=False, capture_output=True, text=True, env=env, cwd=self.root)
        assert (done.returncode, done.stderr, done.stdout) == (0, "", ""), text
        own = [f"{axis[0]}={values[last]}"] if axis else []
        words = words_of(self.words)
        begin = ["--kill-on-bad-exit=1", sys.executable][: 2 * (kind == "slurm")] + ["-m", "layerzoo", "fit", recipe]
        assert words[: len(begin)] == begin, text
        assert [w for w in words[len(begin):] if not w.startswith("--trainer.")] == options([*overrides, *own]), text
        self.words.unlink()

    def value(self) -> str:
        text = hostile(self.draw)
        return text + self.draw.choice(LONE) if self.draw.random() < 0.05 else text

    def rounds(self, count: int) -> None:
        recipe = SHIPPED_RECIPES / "quickstart.yaml"
        for i in range(count):
            name = f"r{self.value()}".replace("/", "").encode(errors="ignore").decode().replace("\0", "")[:60] + ".yaml"
            shutil.copy(recipe, name)
            overrides = [f"{key}={self.value()}" for key in self.draw.sample(TEXTS, 2)]
            if i % 5 == 0:
                overrides.append(f"runs=runs{self.value() if i % 10 else i}")
            if i % 7 == 0:
                overrides.append(f"model.layer={self.value()}")
            axis = (self.draw.choice(TEXTS), f"{self.value()},{self.value()}") if i % 3 == 0 else None
            more = [f"--{self.draw.choice(NAMES)}={self.value()}"] if i % 4 == 0 else []
            verb = "sweep" if axis and i % 2 else "launch"
            self.launch(verb, ("slurm", "local")[i % 2], name, overrides, axis, more)
            Path(name).unlink()
        assert [*self.bin.parent.rglob("pwned*")] == []  # beside the work folder and in it


@pytest.fixture
def scene(cluster, monkeypatch, capsys):  # noqa: F811
    return Scene(Path.cwd(), cluster, monkeypatch, capsys)


def test_values_are_refused_or_passed_on(scene):
    scene.rounds(12)
    assert min(scene.tally.values()) > 0, scene.tally


@pytest.mark.slow
def test_thousands_of_values_are_refused_or_passed_on(scene):
    scene.rounds(900)
    assert scene.tally["values"] > 3000 and scene.tally["run"] > 200 and scene.tally["refused"] > 200, scene.tally
