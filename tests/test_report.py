"""What layers cost as maps grow, and which position sees which."""

import csv
import math
import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import layerzoo as lz
from layerzoo import cli
from layerzoo.checkpoint import save_checkpoint
from layerzoo.report import bench_layers as bench
from layerzoo.report import measured
from layerzoo.report.measured import Measurement
from layerzoo.report.pages import efficient_page, other_peers
from layerzoo.report.pattern import effective_matrix, pattern


def test_exponents_are_fitted_to_powers():
    assert measured.slope([1024, 2048, 8192], [3 * n**1.5 for n in (1024, 2048, 8192)]) == pytest.approx(1.5)
    assert math.isnan(measured.slope([1024], [1.0]))
    own = [Measurement("mhsa", 1, n, n / 7, 1, 1, 1, 5 * n**2) for n in (64, 1024, 4096)]
    assert measured.exponents([Measurement("mhsa", 1, 64, 99, 1, 1, 1, 99), *own[1:]]) == pytest.approx((1, 2)), "short sequences do not count"


@pytest.mark.parametrize("ratios, found", [([0.5, 0.4, 0.9], "< 64"), ([2, 0.9, 1], "> 16,384"), ([4, 1, 0.25], "1,024"), ([2, 0.5, 0.1], "256")])
def test_crossover_lies_between_the_lengths_measured(ratios, found):
    assert measured.crossover([64, 1024, 16384], ratios) == found


def test_summary_has_a_cell_for_every_length_and_the_cards_claims():
    found = [Measurement("mhsa", 9, n, n / 1000, 1, 1, 1, n) for n in (1024, 2048)] + [Measurement("pooling", 0, 2048, 0.5, 0.2, 0.2, 0.2, 3)]
    assert measured.summary(found) == [
        {"name": "mhsa", "1,024": "1.0 ms 1,024 MiB", "2,048": "2.0 ms 2,048 MiB", "time": "N^1.00 (2)", "memory": "N^1.00 (1)",
         "faster than exact from": ""},
        {"name": "pooling", "1,024": "left out", "2,048": "0.5 ms 3 MiB", "time": "N^nan (1)", "memory": "N^nan (1)", "faster than exact from": "< 2,048"}]


def test_csv_round_trip(tmp_path):
    found = [Measurement("mhsa", 16640, 1024, 1.5, 1.0, 0.5, 2.0, 3.25), Measurement("pooling", 0, 64, 0.25, 0.125, 0.1, 0.2, 1.0)]
    measured.write_csv(found, tmp_path / "layers.csv")
    assert measured.read_csv(tmp_path / "layers.csv") == found


class Twice(nn.Module):
    """One buffer forward, one backward."""

    def forward(self, x):
        return 2 * x


def test_peak_counts_activations_and_gradients():
    assert bench.peak_mib(bench.step_of(Twice(), (1, 16, 128, 128))) == 2.0  # of 16 * 128 * 128 numbers of 4 bytes each
    step = bench.step_of(layer := lz.create_layer("mhsa", dim=16), (1, 16, 8, 8))
    step()
    first = {k: p.grad.clone() for k, p in layer.named_parameters()}
    step()
    assert all(torch.equal(p.grad, first[k]) for k, p in layer.named_parameters()), "gradients do not add up over steps"


def test_layers_are_measured_in_turns_and_too_large_ones_left_out():
    said = []
    found = bench.bench_layers(["pooling", "adaptively_sparse"], [64, 16], dim=16, rounds=2, most_gib=2e-4, tell=said.append)
    assert [(m.name, m.length) for m in found] == [("mhsa", 16), ("pooling", 16), ("adaptively_sparse", 16), ("mhsa", 64), ("pooling", 64)]
    assert said == [
        "16 positions: 3 layers measured", "adaptively_sparse at 64 left out: its activations take 0.0 GiB, more than 0.0002",
        "64 positions: 2 layers measured"]
    assert all(m.ms > 0 and m.mib > 0 and m.low <= m.ratio <= m.high for m in found)
    assert all(m.ratio == 1 for m in found if m.name == "mhsa")


@pytest.mark.parametrize("lengths", [[], [0, 5]])
def test_lengths_are_checked(lengths):
    message = f"lengths: got {lengths}, expected whole numbers >= 1 of positions. Choose some such as 1024,4096,16384."
    with pytest.raises(ValueError, match=re.escape(message)):
        bench.bench_layers(["pooling"], lengths)


def test_squarest():
    assert [bench.squarest(n) for n in (1, 7, 64, 2048, 12)] == [(1, 1), (1, 7), (8, 8), (32, 64), (3, 4)]


def test_bench_from_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["bench", "layers", "pooling", "--lengths", "16,64", "--rounds", "1", "--dim", "8"]
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    assert re.search(r"pooling +\d+\.\d ms +0 MiB", out) and out.endswith("bench-layers/layers.csv\nbench-layers/layers.png\n")
    with open("bench-layers/layers.csv", newline="", encoding="utf-8") as file:
        assert [(row["name"], row["length"]) for row in csv.DictReader(file)] == [("mhsa", "16"), ("pooling", "16"), ("mhsa", "64"), ("pooling", "64")]
    assert (tmp_path / "bench-layers" / "layers.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main(command) == 2
    assert "destination: got bench-layers, which exists, expected a new file." in capsys.readouterr().err


def test_bench_layers_takes_no_keys_of_recipes(capsys):
    assert cli.main(["bench", "layers", "--model.layer", "mhsa"]) == 2
    message = "bench layers: got --model.layer=mhsa, expected options of its own alone. `layerzoo bench --help` lists them.\n"
    assert capsys.readouterr().err == message


def test_lra_trains_each_method_with_each_seed_and_repeats_none(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for split, c, i in product(("train", "test"), "ab", range(4)):
        folder = tmp_path / "data" / split / c
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{i}.png")
    command = [
        "bench", "lra", "linear_attention", "hydra", "--seeds", "2", "--data.source", "grey:folder:data", "--data.batch_size", "4", "--data.val_fraction", "0.25",
        "--trainer.max_epochs", "1", "--task.schedule.warmup_epochs", "0", "--model.options.depth", "1", "--logging.wandb", "disabled"]
    assert cli.main([*command, "--out", "lra.csv"]) == 0
    assert [r["method"] for r in measured.read_rows(tmp_path / "lra.csv")] == ["linear_attention", "hydra"]
    out = capsys.readouterr().out
    assert re.search(r"linear_attention +\d+\.\d\d +\d+\.\d\d +\d+\.\d\d +\d+ +42.34", out) and re.search(r"hydra +\d+\.\d\d", out)
    assert cli.main(command) == 0
    assert capsys.readouterr().out.count("is done already") == 4


@pytest.mark.parametrize("words, got", [(["conv"], "layer: got 'conv', expected one of mhsa, "), (["--seeds", "0"], "seeds: got 0, expected one of mhsa, ")])
def test_lra_refuses(words, got, capsys):
    assert cli.main(["bench", "lra", *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith(got) and err.endswith("; 1 seed or more. Correct it, or leave it out for all.\n")


def test_every_efficient_layer_has_a_recipe_of_the_arena():
    from layerzoo.report.bench_lra import LADDER, PUBLISHED, methods

    assert set(methods()) == {"mhsa", *lz.list_layers("efficient"), *LADDER} and PUBLISHED.keys() <= set(methods())


class Mixes(nn.Module):
    """y = A x over positions, the same for every channel."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix = matrix

    def forward(self, x):
        return self.matrix @ x


def test_the_matrix_of_a_linear_mixing_is_its_own():
    matrix = torch.randn(5, 7)
    layer = Mixes(matrix).train()
    assert torch.allclose(effective_matrix(layer, torch.randn(1, 7, 4)), matrix.abs(), atol=1e-6) and layer.training
    near = effective_matrix(layer, torch.randn(1, 7, 4), probes=400)
    assert not torch.allclose(near, matrix.abs(), atol=1e-6) and torch.allclose(near, matrix.abs(), rtol=0.2)


def test_convolution_sees_its_kernel_and_maps_and_tokens_agree():
    seen = effective_matrix(lz.create_layer("depthwise_conv", dim=4, kernel_size=3), torch.randn(1, 4, 5, 6)) > 0
    rows, cols = torch.arange(30) // 6, torch.arange(30) % 6
    assert torch.equal(seen, ((rows[:, None] - rows).abs() <= 1) & ((cols[:, None] - cols).abs() <= 1))
    layer, x = lz.create_layer("mhsa", dim=8).double(), torch.randn(1, 8, 3, 4).double()
    assert torch.allclose(effective_matrix(layer, x), effective_matrix(layer, x.flatten(2).mT))


def test_one_sample_at_a_time():
    with pytest.raises(ValueError, match=re.escape("x: got (2, 8, 3, 4), expected one map (1, C, H, W) or (1, N, C). Pass one sample.")):
        effective_matrix(lz.create_layer("mhsa", dim=8), torch.randn(2, 8, 3, 4))


def test_patterns_of_layers_and_downsamples():
    causal_free = pattern("blockwise", (4, 4), 16)
    assert causal_free.shape == (16, 16) and causal_free.isfinite().all()
    assert pattern("patch_merge", (4, 6), 16).gt(0).sum(1).tolist() == [4] * 6


def test_plot_from_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["plot", "pattern", "linformer"]) == 0
    assert capsys.readouterr().out == "pattern-linformer.png\n"
    assert (tmp_path / "pattern-linformer.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main(["plot", "pattern", "linfomer"]) == 2
    assert "layers name: got 'linfomer', expected a known name such as linformer" in capsys.readouterr().err


RECORDED = measured.recorded()


def test_every_efficient_layer_is_recorded():
    assert RECORDED.keys() == {"mhsa", *lz.list_layers("efficient")}


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_exponents_keep_what_the_card_says(name):
    fitted, claimed = measured.exponents(RECORDED[name]), lz.layer_card(name).cost
    over = [0.25 if claim <= 1 else 0.5 for claim in claimed]  # what grows leaves the caches on the way
    assert all(fit <= claim + more for fit, claim, more in zip(fitted, claimed, over)), (fitted, claimed)
    length, options = RECORDED[name][0].length, {"grid": bench.squarest(RECORDED[name][0].length), "num_heads": 4}
    layer = lz.registry.LAYERS.create(name, 64, defaults=options)
    assert sum(p.numel() for p in layer.parameters()) == RECORDED[name][0].parameters, f"at {length} positions"


def test_every_pair_with_a_public_package_is_recorded():
    from layerzoo.report.bench_peers import FORMATS, PEERS
    from layerzoo.report.vision_peers import VISION_PEERS

    rows = measured.read_rows(measured.PEERS)
    assert sorted((r["layer"], r["package"], r["input"], int(r["length"])) for r in rows) == sorted(
        (p.layer, p.package, given, n) for p in (*PEERS, *VISION_PEERS) for given in (FORMATS if p.maps else ["tokens"]) for n in (1024, 4096))
    assert all(0 < float(r["q1"]) <= float(r["time"]) <= float(r["q3"]) and float(r["memory"]) > 0 for r in rows)
    assert "| linformer | linformer | tokens | 4,096 | " in efficient_page() and "| halo | timm | " not in efficient_page()
    assert "| halo | timm | channels_last | 4,096 | " in other_peers() and "| linformer |" not in other_peers() and "| mhsa | timm | tokens | 1,024 | " in other_peers()


def test_every_method_of_the_arena_is_recorded():
    from layerzoo.report.bench_lra import PUBLISHED, methods

    rows = {r["method"]: r for r in measured.read_rows(measured.ARENA)}
    assert rows.keys() == set(methods()) and all(float(r["steps/s"]) > 0 and int(r["MiB"]) > 0 for r in rows.values())
    assert {name: float(r["published"]) for name, r in rows.items() if r["published"]} == PUBLISHED
    assert f"| s4d | {rows['s4d']['accuracy']} | " in efficient_page()


def test_peers_that_are_not_installed_are_named_and_left_out(monkeypatch, capsys, tmp_path):
    from layerzoo.report import bench_peers

    peers = [bench_peers.Peer("nothing", "no_such_package", None, "hydra"), bench_peers.Peer("torch", "torch.nn", lambda m, n: m.Identity(), "identity")]
    monkeypatch.setattr(bench_peers, "PEERS", peers)
    monkeypatch.setattr(bench_peers, "VISION_PEERS", [])
    monkeypatch.setattr("sys.argv", ["bench_peers", "--lengths", "16", "--rounds", "2", "--threads", "1", "--out", str(tmp_path / "peers.csv")])
    bench_peers.main()
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"hydra +nothing +16  not installed: No module named 'no_such_package'", lines[1])
    assert re.fullmatch(r"identity +torch +16 +\d+\.\d\d \[\d+\.\d\d, \d+\.\d\d\] +\d+\.\d\d +\d+\.\d\d", lines[2]) and lines[3].startswith("median of 1: ")
    assert [r["layer"] for r in measured.read_rows(tmp_path / "peers.csv")] == ["identity"]


def test_the_page_has_a_row_for_every_model_of_the_survey():
    page = efficient_page()
    rooms = (lz.registry.LAYERS, lz.registry.FFNS, lz.registry.DOWNSAMPLES)
    named = {name for room in rooms for name in room.names() if room.card(name).survey} | set(lz.list_layers("efficient"))
    assert set(re.findall(r"^\| \[(\w+)\]\(reference/", page, re.MULTILINE)) == named
    assert set(re.findall(r"images/patterns/(\w+)\.png", page)) == named - set(lz.registry.FFNS.names())


def test_plot_attention_of_a_checkpoint(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = lz.create_model("attention_cnn", num_classes=2, img_size=16, options={"dim": 4, "depth": 1})
    save_checkpoint("saved", model, classes=["a", "b"], mean=[0.5] * 3, std=[0.2] * 3, metrics={})
    Image.new("RGB", (20, 16), "red").save("red.png")
    assert cli.main(["plot", "attention", "red.png", "--checkpoint", "saved", "--query", "0.2,0.9"]) == 0
    assert capsys.readouterr().out == "attention.png\n" and Path("attention.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main(["plot", "attention", "--checkpoint", "saved", "--out", "noise.png"]) == 0 and Path("noise.png").exists()
    assert cli.main(["plot", "attention"]) == 2
    assert "destination: got attention.png, which exists, expected a new file." in capsys.readouterr().err
    assert cli.main(["plot", "attention", "--out", "b.png"]) == 2
    err = capsys.readouterr().err
    assert err == "--checkpoint: got none, expected a name, folder or address. `layerzoo list checkpoints` lists those to pull.\n"


def test_plot_sharpness_and_wrong_names(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["plot", "sharpness"]) == 0 and Path("sharpness.png").exists()
    assert "bfloat16" in capsys.readouterr().out
    assert cli.main(["plot", "sharpness", "conv"]) == 2
    assert capsys.readouterr().err == "plot sharpness: got conv, expected no names. Leave them out.\n"
    assert cli.main(["plot", "pattern"]) == 2
    assert capsys.readouterr().err == "plot pattern: got 0 names, expected one layer or downsample. `layerzoo list layers` lists them.\n"
    with pytest.raises(SystemExit):
        cli.main(["plot", "attention", "--query", "middle"])
    assert "'middle' is not ROW,COLUMN, two shares of the map such as 0.5,0.5" in capsys.readouterr().err
