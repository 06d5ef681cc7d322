"""The scoreboard of savers and downloads: the harness finds what it should, and the page says what is recorded."""

import json
import multiprocessing
import random
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import torch

from layerzoo.report import bench_downloads, bench_faults, bench_resume
from layerzoo.report.measured import DOWNLOADS, FAULTS, RESUMED, read_rows
from layerzoo.report.pages import faults_page
from layerzoo.report.savers import SAVERS, Found, Torch, state, step_of
from layerzoo.report.watch import PARTS


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


class Crossed(Torch):
    """Even and odd values go to two files, which have to be the same."""

    def save(self, folder, kept):
        torch.save(kept, folder / f"{step_of(kept) % 2}.pt")

    def find(self, folder):
        found = {step_of(torch.load(path, weights_only=True)) for path in folder.glob("*.pt")}
        return Found(found.pop() if len(found) == 1 else -1, folder)


def test_two_that_save_into_one_place(tmp_path, monkeypatch):
    monkeypatch.setitem(SAVERS, "crossed", Crossed)
    assert bench_faults.together("crossed", tmp_path, 2) == {"wrong": 2, "told": 0, "named": 0}


def test_of_two_that_save_into_one_place_the_second_is_refused_by_name(tmp_path):
    fork = multiprocessing.get_context("fork")
    heard, line = fork.Pipe(duplex=False)
    with SAVERS["layerzoo"]().turn(tmp_path):
        writer = fork.Process(target=bench_faults._write, args=("layerzoo", tmp_path, 0, fork.Barrier(1), line))
        writer.start()
        assert heard.recv().startswith(f"Refusal: run folder {tmp_path}: got a run in it (host ")
        writer.join()
    assert {path.name for path in tmp_path.iterdir()} == {".lock"}


@pytest.mark.parametrize("kept", [("weights",), ("weights", "moments", "randomness")])
def test_what_comes_back_is_what_was_saved(kept):
    done = subprocess.run([sys.executable, Path(__file__).with_name("resumes.py"), *kept], check=True, stdout=subprocess.PIPE, text=True)
    expected = {*kept, "samples", "end"} if len(kept) == 3 else {*kept}
    assert json.loads(done.stdout.splitlines()[-1]) == {part: "same" if part in expected else "other" for part in PARTS}


def test_trainings_that_differ_anyway_are_no_measurement(monkeypatch):
    monkeypatch.setitem(bench_resume.TRAININGS, "mine", lambda folder, watch, stop: watch._write({part: folder.name for part in PARTS}))
    with pytest.raises(ChildProcessError, match="^mine: two trainings from one seed differ before they are stopped$"):
        bench_resume.resumed("mine", 1)
    monkeypatch.setitem(bench_resume.TRAININGS, "mine", lambda folder, watch, stop: sys.exit(3))
    with pytest.raises(ChildProcessError, match="^mine: exit code 3$"):
        bench_resume.resumed("mine", 1)


def test_requests_are_counted_and_bytes_compared(tmp_path):
    weights = tmp_path / bench_downloads.WEIGHTS
    weights.write_bytes(b"12345678")
    with bench_downloads._serving(tmp_path, bench_downloads.EIGHT) as served:
        for count in (1, 2):
            with urllib.request.urlopen(f"{served.url}/{weights.name}") as answer:
                assert answer.read() == b"12345678" and served.asked == count
    for code, end in ((f"print({str(weights)!r})", "right"), (f"print({__file__!r})", "wrong"), ("raise SystemExit(1)", "refused")):
        assert bench_downloads._end(subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True), b"12345678") == end


@pytest.mark.slow
@pytest.mark.parametrize("fault, ends", [("none", ("right", "right")), ("a bit flipped", ("refused", "wrong")), (bench_downloads.EIGHT, ("8 right", "8 right"))])
def test_downloads_meet_the_fault(monkeypatch, fault, ends):
    monkeypatch.setattr(bench_downloads, "FAULTS", (fault,))
    [row] = bench_downloads.bench_downloads()
    assert (row["layerzoo"], row["huggingface_hub"]) == ends and row["layerzoo requests"] == row["huggingface_hub requests"] == 1


def test_page_says_what_is_recorded():
    found, page = read_rows(FAULTS), faults_page()
    assert {row["saver"] for row in found} == set(SAVERS) and [row["fault"] for row in read_rows(DOWNLOADS)] == list(bench_downloads.FAULTS)
    assert all(int(row["tries"]) == sum(int(row[end]) for end in bench_faults.ENDS) for row in found)
    flips = {row["saver"]: row for row in found if row["fault"] == "a bit flipped"}
    assert f"| a bit flipped | {flips['layerzoo']['older']} older | " in page and f"{flips['timm']['wrong']} wrong |" in page
    again = {(row["stopped"], row["saver"]): row for row in read_rows(RESUMED)}
    assert again.keys() == {(place, name) for place in bench_resume.STOPS for name in SAVERS}
    assert all(f"| {place} | {part} | {' | '.join(again[place, name][part] for name in SAVERS)} |" in page for place in bench_resume.STOPS for part in PARTS)
    assert Path(FAULTS).with_name("faults-costs.csv").is_file() and "| a byte a second | refused, " in page
