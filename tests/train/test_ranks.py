"""Two gloo ranks on the CPU give what one process gives, count every sample once, and never wait for each other in vain."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import toy
from outcome import ALONE

from layerzoo.train.loggers import read_metrics


def test_two_ranks(tmp_path):
    """The metrics of one process with the doubled batch; with batch norm the same model everywhere, and no hang.

    The evaluation shares are 52 and 51 samples in batches of 51: two batches on one rank, one on the other.
    """
    _start_two(tmp_path / "two")
    toy.train(1, "plain", tmp_path)
    [alone], ranks = _seen(tmp_path), _seen(tmp_path / "two" / "plain")
    for split in ("val", "test"):
        assert ranks[0][split] == ranks[1][split]
        assert ranks[0][split] == pytest.approx(alone[split], rel=1e-5)
        correct = ranks[0][split][f"{split}/top1"] * 103
        assert correct == pytest.approx(round(correct), abs=1e-4)  # all 103 samples, each once
        assert round(correct) == round(alone[split][f"{split}/top1"] * 103)
    rows, alone_rows = (read_metrics(folder / "metrics.jsonl") for folder in (tmp_path / "two" / "plain", tmp_path))
    assert [r["step"] for r in rows] == [r["step"] for r in alone_rows] == [4, 5, 6, 10, 11, 12, 12]  # Lightning counts the validation at 5
    for row, other in zip(rows, alone_rows):
        for name in row.keys() - {"time", "train/images_per_s"}:
            assert row[name] == pytest.approx(other[name], rel=1e-5), name

    normed = _seen(tmp_path / "two" / "batch_norm")
    assert normed[0] == normed[1]
    assert any("running_var" in name and min(value) > 0 for name, value in normed[0]["state"].items())


def _start_two(folder: Path) -> None:
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, toy.__file__, "2", folder], env=ALONE | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def _seen(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("rank*.json"))]
