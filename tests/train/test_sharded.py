"""FSDP2 over gloo: what two ranks hold in parts is what DDP holds whole, in every number that is written, and a run goes on under either."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import sharded_ranks
import torch

import layerzoo as lz
from layerzoo.train.loggers import read_metrics
from layerzoo.train.saving import newest_whole, read
from layerzoo.train.sharded import Sharded


def fit(folder, strategy, step=0):
    """Exit code and what was said."""
    clean = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_PORT", "MASTER_ADDR")}
    words = [sys.executable, sharded_ranks.__file__, folder, strategy, str(step)]
    done = subprocess.run(words, env=clean | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=150, check=False)
    return done.returncode, done.stdout + done.stderr


def home(folder) -> Path:
    [found] = (folder / "toy").iterdir()
    return found


def left(folder):
    rows = [{k: v for k, v in row.items() if k not in ("time", "train/images_per_s")} for row in read_metrics(home(folder) / "metrics.jsonl")]
    return rows, lz.load(home(folder) / "checkpoint").state_dict()


def close(one, other, tol):
    (rows, weights), (again, same) = left(one), left(other)
    assert [row.keys() for row in rows] == [row.keys() for row in again] and weights.keys() == same.keys()
    for row, twin in zip(rows, again):
        assert row == (twin if tol == 0 else pytest.approx(twin, rel=tol))
    for key, value in weights.items():
        torch.testing.assert_close(value, same[key], rtol=tol, atol=tol, msg=key)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Unbroken runs of both strategies."""
    folders = {strategy: tmp_path_factory.mktemp(strategy) for strategy in ("fsdp", "ddp")}
    for strategy, folder in folders.items():
        code, said = fit(folder, strategy)
        assert code == 0, said
    return folders


@pytest.mark.slow
def test_sharded_is_what_ddp_is(whole):
    close(whole["fsdp"], whole["ddp"], 2e-4)
    one, other = (read(newest_whole(home(whole[strategy]) / "ckpt")) for strategy in ("fsdp", "ddp"))
    assert one.keys() == other.keys() and one["state_dict"].keys() == other["state_dict"].keys()
    kept, same = (saved["optimizer_states"][0] for saved in (one, other))
    assert kept["param_groups"] == same["param_groups"] and kept["state"].keys() == same["state"].keys()
    for number, values in kept["state"].items():
        assert {k: (v.shape, type(v)) for k, v in values.items()} == {k: (v.shape, type(v)) for k, v in same["state"][number].items()}


@pytest.mark.slow
@pytest.mark.parametrize("first, then", [("fsdp", "fsdp"), ("fsdp", "ddp"), ("ddp", "fsdp")])
def test_it_goes_on_under_either(tmp_path, whole, first, then):
    """Bit for bit where the strategy stays."""
    code, said = fit(tmp_path, first, step=10)
    assert code == 143 and not (home(tmp_path) / "checkpoint").exists(), said
    code, said = fit(tmp_path, then)
    assert code == 0 and "resumed from step-000000006" in said, said
    close(tmp_path, whole[then], 0 if first == then else 2e-4)


def test_parameters_without_axes_are_refused():
    strategy = Sharded()
    strategy._lightning_module = torch.nn.Module()
    strategy._lightning_module.scale = torch.nn.Parameter(torch.tensor(1.0))
    with pytest.raises(ValueError, match="^trainer.strategy: got fsdp, and scale without axes, expected parameters that can be cut into parts. Use ddp, or a"):
        strategy.configure_ddp()
