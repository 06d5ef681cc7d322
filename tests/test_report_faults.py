"""The scoreboard of savers and downloads: the harness finds what it should, and the page says what is recorded."""

import random
from pathlib import Path

import pytest

from layerzoo.report import bench_downloads, bench_faults
from layerzoo.report.measured import DOWNLOADS, FAULTS, read_rows
from layerzoo.report.pages import faults_page
from layerzoo.report.savers import SAVERS, Found, state, step_of


@pytest.mark.parametrize("name", SAVERS)
def test_each_saver_finds_its_newest(tmp_path, name):
    saver = SAVERS[name]()
    for step in (1, 2, 3):
        saver.save(tmp_path, state(step, 1000))
        assert SAVERS[name]().find(tmp_path).step == step


def test_values_of_no_save_are_wrong(tmp_path, monkeypatch):
    kept = state(2, 1000)
    assert step_of(kept) == 2
    kept["state_dict"]["weight"][7] = 2.5
    assert step_of(kept) == -1
    for step, end in ((3, "newest"), (2, "older"), (-1, "wrong"), (4, "wrong")):
        monkeypatch.setattr(SAVERS["torch.save"], "find", lambda self, folder, step=step: Found(step, folder))
        assert bench_faults._end("torch.save", tmp_path, range(3, 4)) == end


def test_a_flipped_bit_is_older_here_and_wrong_elsewhere(tmp_path):
    for name, ends in {"layerzoo": {"older": 12}, "torch.save": {"wrong": 12}}.items():
        (tmp_path / name).mkdir()
        assert bench_faults.damaged(name, tmp_path / name, 12, bench_faults._flip) == ends


def test_harm_changes_one_bit_or_cuts():
    draw = random.Random(0)
    flipped, cut = bench_faults._flip(bytes(9), draw), bench_faults._cut(bytes(9), draw)
    assert sum(byte.bit_count() for byte in flipped) == 1 and len(flipped) == 9 > len(cut)


@pytest.mark.slow
@pytest.mark.parametrize("fault, ends", [("none", ("right", "right")), ("a bit flipped", ("refused", "wrong"))])
def test_downloads_meet_the_fault(monkeypatch, fault, ends):
    monkeypatch.setattr(bench_downloads, "FAULTS", (fault,))
    [row] = bench_downloads.bench_downloads()
    assert (row["layerzoo"], row["huggingface_hub"]) == ends


def test_page_says_what_is_recorded():
    found, page = read_rows(FAULTS), faults_page()
    assert {row["saver"] for row in found} == set(SAVERS) and [row["fault"] for row in read_rows(DOWNLOADS)] == list(bench_downloads.FAULTS)
    assert all(int(row["tries"]) == sum(int(row[end]) for end in bench_faults.ENDS) for row in found)
    flips = {row["saver"]: row for row in found if row["fault"] == "a bit flipped"}
    assert f"| a bit flipped | {flips['layerzoo']['older']} older | " in page and f"{flips['timm']['wrong']} wrong |" in page
    assert Path(FAULTS).with_name("faults-costs.csv").is_file() and "| a byte a second | refused, " in page
