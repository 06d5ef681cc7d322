"""What a run leaves, to be compared with what another leaves."""

import os
from pathlib import Path

import torch
from torch import Tensor

import layerzoo as lz
from layerzoo.train.loggers import read_metrics

CLOCKS = ("time", "train/images_per_s")
ALONE = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_PORT", "MASTER_ADDR")}  # to start ranks of its own


def rows(folder: Path) -> list[dict]:
    """The metrics of a run folder, but for those of time."""
    return [{k: v for k, v in row.items() if k not in CLOCKS} for row in read_metrics(folder / "metrics.jsonl")]


def left(folder: Path) -> tuple[list[dict], dict[str, Tensor]]:
    """The metrics and the published weights of a run folder."""
    return rows(folder), lz.load(folder / "checkpoint").state_dict()


def equal(one: tuple[list[dict], dict[str, Tensor]], other: tuple[list[dict], dict[str, Tensor]]) -> None:
    """What two runs left is the same, bit for bit."""
    (metrics, weights), (again, same) = one, other
    assert metrics == again and all(torch.equal(weights[k], same[k]) for k in weights)
