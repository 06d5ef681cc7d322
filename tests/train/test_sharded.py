"""FSDP2 over gloo: what two ranks hold in parts is what DDP holds whole, in every number that is written, and a run goes on under either."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import sharded_optimizers
import sharded_ranks
import torch
from outcome import ALONE, left

from layerzoo.recipe_check import IN_PARTS
from layerzoo.train.saving import newest_whole, read
from layerzoo.train.sharded import Sharded


def start(script, *words):
    """Exit code, output and messages."""
    done = subprocess.run([sys.executable, script.__file__, *words], env=ALONE | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=400, check=False)
    return done.returncode, done.stdout, done.stderr


def fit(folder, strategy, step=0, deed="none"):
    """Exit code and what was said."""
    code, out, errors = start(sharded_ranks, folder, strategy, str(step), deed)
    return code, out + errors


def home(folder) -> Path:
    [found] = (folder / "toy").iterdir()
    return found


def close(one, other, tol):
    (rows, weights), (again, same) = left(home(one)), left(home(other))
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
@pytest.mark.parametrize("first, then, step, deed, left_at", [
    ("fsdp", "fsdp", 10, "stop", 6), ("fsdp", "fsdp", 1, "pause", 9), ("fsdp", "ddp", 10, "stop", 6), ("ddp", "fsdp", 10, "stop", 6)])
def test_it_goes_on_under_either(tmp_path, whole, first, then, step, deed, left_at):
    """Bit for bit where the strategy stays."""
    code, said = fit(tmp_path, first, step, deed)
    assert code == 143 and not (home(tmp_path) / "checkpoint").exists(), said
    code, said = fit(tmp_path, then)
    assert code == 0 and f"resumed from step-{left_at:09}" in said, said
    close(tmp_path, whole[then], 0 if first == then else 2e-4)


@pytest.mark.slow
def test_no_rank_waits_where_one_alone_is_spoiled(tmp_path):
    code, said = fit(tmp_path, "fsdp", 3, "spoil")
    assert code == 1 and said.count("training loss at step 2 is ") == 2 and "another rank" not in said, said
    assert not (home(tmp_path) / "checkpoint").exists()


@pytest.mark.slow
def test_optimizers():
    """Those that a recipe may name: what each makes of parts is what it makes of whole tensors, and it goes on to the same bits."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    code, out, errors = start(sharded_optimizers, port, *IN_PARTS)
    assert code == 0, errors
    for name, (whole, unbroken, moved) in json.loads(out.splitlines()[-1]).items():
        assert whole < 1e-10 < 1e-5 < moved and unbroken == 0, name


def test_parameters_without_axes_are_refused():
    strategy = Sharded()
    strategy._lightning_module = torch.nn.Module()
    strategy._lightning_module.scale = torch.nn.Parameter(torch.tensor(1.0))
    with pytest.raises(ValueError, match="^trainer.strategy: got fsdp, and scale without axes, expected parameters that can be cut into parts. Use ddp, or a"):
        strategy.configure_ddp()
