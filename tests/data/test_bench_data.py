"""The benchmark of the data pipelines runs and prints its table."""

import re
import sys

import torch
from folders import make_folder

from layerzoo.report import bench_data


def test_prints_a_table(tmp_path, monkeypatch, capsys):
    make_folder(tmp_path, {"train": {"a": 40, "b": 40}, "test": {"a": 1, "b": 1}}, size=(32, 32))
    monkeypatch.setattr(sys, "argv", ["bench_data", str(tmp_path), "--rounds", "2", "--batches", "3", "--batch", "4"])
    monkeypatch.setenv("LAYERZOO_CACHE", str(tmp_path / "cache"))
    threads = torch.get_num_threads()
    bench_data.main()
    torch.set_num_threads(threads)
    said = capsys.readouterr().out
    for name in ("in memory", *bench_data.TARGETS):
        assert re.search(rf"{re.escape(name)} +[\d,]+ +[\d.]+ x \[[\d.]+, [\d.]+\]", said)
    assert re.search(r"share of a training step of resnet18 \(batch 4\): [\d.]+%, target <= 1 %", said)
