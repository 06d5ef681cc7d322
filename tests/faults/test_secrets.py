"""Keys of the environment reach no file and no line: not of a run, nor of what W&B keeps of it, nor of a job."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import layerzoo

PLANTED = {
    "WANDB_API_KEY": "0f1e2d3c4b5a69788796a5b4c3d2e1f001234567", "HF_TOKEN": "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",
    "AWS_ACCESS_KEY_ID": "AKIAPLANTEDPLANTED01", "AWS_SECRET_ACCESS_KEY": "planted/Secret+AccessKeyplanted/Secret+Ac",
    "AWS_SESSION_TOKEN": "planted-session-token-0123", "GITHUB_TOKEN": "ghp_PlantedPlantedPlantedPlantedPlanted1",
    "DB_PASSWORD": "planted-password-0123"}
SHORT = ["--trainer.max_epochs=1", "--data.train_fraction=0.1", "--trainer.accelerator=cpu", "--data.num_workers=0"]


def layerzoo_says(work, *words, mode="offline"):
    """What is printed, in a home of its own."""
    env = {key: value for key, value in os.environ.items() if not re.search("WANDB|KEY|TOKEN", key)} | PLANTED
    env |= {"HOME": str(work / "home"), "WANDB_MODE": mode, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(layerzoo.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-m", "layerzoo", *words], cwd=work, env=env, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def found(work, *printed):
    """Which of the planted are in which file, or in what was printed; whole, since parts of a word prove nothing."""
    texts = {str(path.relative_to(work)): path.read_bytes() for path in work.rglob("*") if path.is_file()}
    texts |= {f"printed {i}": text.encode() for i, text in enumerate(printed)}
    return [(name, key) for name, text in texts.items() for key, value in PLANTED.items() if value.encode() in text]


def test_what_is_planted_is_found(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "log").write_bytes(b"\0key=" + PLANTED["HF_TOKEN"].encode() + b"\xff")
    assert found(tmp_path, f"x{PLANTED['DB_PASSWORD']}") == [("a/log", "HF_TOKEN"), ("printed 0", "DB_PASSWORD")]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_a_run_keeps_no_secret(tmp_path, mode):
    said = layerzoo_says(tmp_path, "fit", "quickstart", *SHORT, mode=mode)
    names = {path.name for path in tmp_path.rglob("*")}
    assert {"recipe.yaml", "env.json", "manifest.json", "metrics.jsonl"} <= names
    assert found(tmp_path, said) == []


@pytest.mark.slow
def test_a_job_keeps_no_secret(tmp_path):
    shown = [layerzoo_says(tmp_path, "launch", "quickstart", "--cluster", kind, *more, *SHORT[:2], "--dry-run", mode="disabled") for kind, more in (
        ("slurm", []), ("local", []), ("kubernetes", ["--image", "a"]), ("skypilot", []))]
    assert not (tmp_path / "runs").exists()
    shown.append(layerzoo_says(tmp_path, "launch", "quickstart", "--cluster", "local", *SHORT, mode="disabled"))
    end = time.monotonic() + 240
    while not [*tmp_path.glob("runs/.jobs/*/exit-0")]:
        assert time.monotonic() < end, "the job does not end"
        time.sleep(0.2)
    job = next(tmp_path.glob("runs/.jobs/*"))
    assert {"script.sh", "job.json", "log-0.txt", "exit-0"} <= {path.name for path in job.iterdir()} and (job / "exit-0").read_text() == "0\n", (
        job / "log-0.txt").read_text()
    shown.append(layerzoo_says(tmp_path, "logs", "layerzoo-quickstart-1", mode="disabled"))
    assert found(tmp_path, *shown) == []
