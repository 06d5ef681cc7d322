"""Studies from one command to their folder, on a handful of generated images, and what they refuse."""

import csv
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "data"))
from folders import make_folder

import layerzoo as lz
from layerzoo import cli
from layerzoo.config import AugmentConfig, DataConfig
from layerzoo.data.datamodule import ImageData
from layerzoo.study import data_size, runner, scores
from layerzoo.study.base import Case, against, told
from layerzoo.study.data_size import DataSize
from layerzoo.study.positions import Positions, shuffle
from layerzoo.study.probes import accuracy
from layerzoo.study.runner import Plan, gather, plan
from layerzoo.study.scores import Scores, weights_of
from layerzoo.study.window import Window, as_full, sizes
from layerzoo.train import callbacks

TINY = ["--data.img_size", "8", "--data.train_fraction", "1.0", "--data.batch_size", "4", "--trainer.max_epochs", "1", "--task.schedule.warmup_epochs", "0"]


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """Without the pictures of a run, which take longer than the run."""
    for name in ("draw_confusion", "draw_wrong"):
        monkeypatch.setattr(callbacks, name, lambda *a: None)


@pytest.fixture
def study(tmp_path, monkeypatch, capsys):
    """Calls the verb in a folder of its own: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path / "images", {"train": {"a": 8, "b": 8}, "test": {"a": 4, "b": 4}})

    def call(*words, tiny=TINY):
        code = cli.main(["study", *words, "--data.source", "folder:images", *tiny])
        return code, *capsys.readouterr()

    return call


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_scores_with_seeds_and_nothing_is_repeated_or_overwritten(study, monkeypatch):
    monkeypatch.setitem(scores.PATCHES, "smoke", (2,))
    code, out, _ = study("scores", "relu", "--seeds", "2")
    assert code == 0 and out.startswith("study scores: 1 cases, 2 seeds, at scale smoke on folder:images\n")
    assert "study  scores 1/1: weights relu, tokens 16, seed 1\n" in out
    names = ("scores.md", "scores.png", "scores.csv", "runs.csv")
    assert out.endswith("".join(f"study-scores-smoke/{name}\n" for name in names))
    assert {p.name for p in Path("study-scores-smoke").iterdir()} == set(names)
    table, runs = (rows_of(f"study-scores-smoke/{name}.csv") for name in ("scores", "runs"))
    row, values = table[0], [float(r["accuracy"]) for r in runs]
    assert (row["weights"], row["tokens"], len(table), [r["seed"] for r in runs]) == ("relu", "16", 1, ["0", "1"])
    assert [float(row["accuracy"]), float(row["accuracy sd"])] == pytest.approx([np.mean(values), np.std(values, ddof=1)], rel=1e-3)
    assert 0 < float(row["zeros"]) < 1 and float(row["row sum"]) < 1 and 0 < float(row["entropy"]) <= 1
    assert [len(r["entropy"].split()) for r in runs] == [2, 2], "one for each layer"
    assert Path("study-scores-smoke/scores.png").read_bytes().startswith(b"\x89PNG")
    page = Path("study-scores-smoke/scores.md").read_text(encoding="utf-8")
    for words in (
        "# Softmax or ReLU", "smoke scale: tiny models", "`layerzoo study scores relu --scale smoke --seeds 2 --data.img_size 8 ", "over 2 seeds",
        "16 tokens: relu ", "| relu | 16 | "):
        assert words in page
    assert "folder:images" not in page, "a page may be published; the place of the images is the reader's"

    before = sorted(Path("runs").rglob("*"))
    code, out, _ = study("scores", "relu", "--seeds", "2", "--out", "again")
    assert code == 0 and out.count("is done already") == 2 and sorted(Path("runs").rglob("*")) == before
    assert rows_of("again/runs.csv") == runs
    code, _, err = study("scores", "--out", "again")
    assert (code, err) == (2, "destination: got again, which exists, expected a new file. Choose another name; nothing was written.\n")


def test_positions_and_the_shuffle(study):
    assert study("positions", "none", "conditional", "--seeds", "1")[0] == 0
    none, conditional = rows_of("study-positions-smoke/positions.csv")
    assert float(none["largest change of a logit"]) < 1e-5 < 1e-3 < float(conditional["largest change of a logit"])
    assert none["accuracy"] == none["shuffled accuracy"] and none["accuracy sd"] == ""
    page = Path("study-positions-smoke/positions.md").read_text(encoding="utf-8")
    assert "One seed, so no spread is known" in page and "64 patches stand in another order" in page and "(one seed, so no spread is known) no encoding" in page


def test_data_size_shares_the_runs_of_the_largest_part(study, monkeypatch):
    monkeypatch.setattr(data_size, "FRACTIONS", (0.5, 1.0))
    code, out, _ = study("data_size", "vit_tiny", "--seeds", "1")
    assert code == 0 and out.count("is done already") == 1
    table = rows_of("study-data_size-smoke/data_size.csv")
    assert [(r["budget"], r["images"], r["epochs"]) for r in table] == [
        ("equal epochs", "8", "1"), ("equal epochs", "16", "1"), ("equal steps", "8", "2"), ("equal steps", "16", "1")]
    for r in table:
        assert float(r["gap"]) == pytest.approx(float(r["train accuracy"]) - float(r["accuracy"]), abs=0.02)
    page = Path("study-data_size-smoke/data_size.md").read_text(encoding="utf-8")
    assert "lies at tens of millions of images" in page and "cannot be reached on CIFAR" in page


def test_convolution_is_set_against_attention_with_the_fewest_and_with_the_most_images():
    numbers = {("resnet18", 500): 40.0, ("vit_tiny", 500): 30.0, ("resnet18", 50_000): 90.0, ("vit_tiny", 50_000): 85.0}
    rows = [
        {"model": model, "budget": "equal steps", "images": count, "accuracy": value, "accuracy sd": 1.0, "gap": 5.0} for (model, count), value in numbers.items()]
    text = DataSize().conclude(rows)
    assert "With equal steps on 500 images: resnet18 40.0 % ± 1.0 (train less test 5.0), vit_tiny 30.0 %" in text
    assert (
        "resnet18 is 10.0 points above (more than twice the spread of 1.4) vit_tiny with the fewest images and "
        "5.0 points above (more than twice the spread of 1.4) it with the most. The crossover of the lecture's slide") in text


def test_a_neighbourhood_of_the_whole_map_is_full_attention(study):
    assert study("window", "neighborhood_attention", "mhsa", "--seeds", "1")[0] == 0
    table = rows_of("study-window-smoke/window.csv")
    assert [(r["layer"], r["w"]) for r in table] == [("neighborhood_attention", "1"), ("neighborhood_attention", "5"), ("mhsa", "4")]
    apart = [r["largest difference from full attention"] for r in table]
    assert [bool(text) for text in apart] == [False, True, False] and float(apart[1]) < 1e-5
    page = Path("study-window-smoke/window.md").read_text(encoding="utf-8")
    assert "there it is full attention, up to rounding" in page and "Full attention with a relative bias, trained as itself" in page


@pytest.mark.parametrize("layer", [[{"name": "window_attention", "window_size": w, "shift": s} for s in (False, True)] for w in (2, 4)], ids=["part", "whole"])
def test_windows_in_full_attention(layer):
    options = {"dim": 8, "depth": 2, "block": {"num_heads": 2}, "stem": {"name": "patchify", "patch_size": 2}}
    model = lz.create_model("vit_tiny", num_classes=3, img_size=8, layer=layer, position="none", options=options).double().eval()
    torch.nn.init.normal_(model.stages[1].layer.relative_bias.table)
    x = torch.randn(2, 3, 8, 8, dtype=torch.double)
    if layer[0]["window_size"] == 2:
        with pytest.raises(RuntimeError, match="size mismatch"):
            as_full(model)
    else:
        assert torch.allclose(as_full(model).double()(x), model(x), atol=1e-6)


def test_windows_grow_from_one_place_to_the_map():
    assert sizes("window_attention", 16) == [1, 2, 4, 8, 16] and sizes("mhsa", 16) == [16]
    assert sizes("neighborhood_attention", 16) == [1, 5, 9, 17] and sizes("neighborhood_attention", 6) == [1, 5, 7]


@pytest.mark.parametrize("normalize", Scores.curves)
def test_weights_looked_at_are_those_of_the_layer(normalize):
    layer, x = lz.create_layer("mhsa", dim=8, num_heads=2, normalize=normalize), torch.randn(2, 8, 3, 4)
    tokens = x.flatten(2).mT
    assert torch.allclose(layer.merge(weights_of(layer, x) @ layer.split(tokens)[2]), layer(tokens), atol=1e-6)


def test_shuffling_moves_whole_patches():
    x, order = torch.arange(2 * 3 * 16 * 16.0).view(2, 3, 16, 16), torch.arange(64).roll(1)
    y = shuffle(x, order)
    assert torch.equal(y[:, :, 0:2, 2:4], x[:, :, 0:2, 0:2]) and torch.equal(y[:, :, 0:2, 0:2], x[:, :, 14:16, 14:16])
    assert torch.equal(shuffle(y, order.argsort()), x)


def test_parts_of_the_training_set_are_nested_and_balanced_and_have_statistics_of_their_own(tmp_path):
    source = f"folder:{make_folder(tmp_path, {'train': {'a': 40, 'b': 40, 'c': 20}, 'test': {'a': 1, 'b': 1, 'c': 1}})}"
    smaller, means = set(), set()
    for fraction in (0.05, 0.1, 0.25, 0.5, 1.0):
        data = ImageData(DataConfig(source, img_size=8, batch_size=4, train_fraction=fraction, augment=AugmentConfig()), seed=round(100 * fraction))
        data.setup()
        index = data.parts["train"][1]
        assert np.bincount(data.sets["train"].labels[index]).tolist() == [round(40 * fraction), round(40 * fraction), round(20 * fraction)]
        assert smaller <= set(index)
        smaller = set(index)
        own = data.pixels["train"][index].double() / 255
        assert np.allclose(data.mean, own.mean((0, 1, 2))) and np.allclose(data.std, own.std((0, 1, 2), correction=0))
        means.add(tuple(data.mean))
    assert len(means) == 5


def test_equal_steps_are_equal():
    recipe = runner.read_recipe("cifar10/vit_tiny", ["data.source=digits", "data.batch_size=10", "trainer.max_epochs=20", "task.schedule.warmup_epochs=2"])
    cases = [c for c in DataSize().cases(recipe, ["resnet18"], "full") if c.labels["budget"] == data_size.STEPS]
    steps = [c.labels["images"] // 10 * c.labels["epochs"] for c in cases]
    assert len(cases) == 7 and steps[-1] == 20 * 144 and all(abs(s - steps[-1]) <= c.labels["images"] // 10 for s, c in zip(steps, cases))
    assert f"task.schedule.warmup_epochs={cases[0].labels['epochs'] / 10}" in cases[0].changes, "the same share of the steps"


@pytest.mark.parametrize("kind, scale", [(Scores, "full"), (Positions, "small"), (DataSize, "small"), (DataSize, "full"), (Window, "small")])
def test_models_of_larger_scales_are_built(kind, scale, monkeypatch):
    monkeypatch.setattr(data_size, "FRACTIONS", (0.01,))
    monkeypatch.setitem(scores.PATCHES, scale, (1,))
    for planned in {p.case.curve: p for p in plan(kind(), [], scale, 1, ["data.source=digits"])}.values():
        cli.check_build(planned.recipes[0], planned.name)
        assert planned.recipes[0].data.augment.mixup == planned.recipes[0].data.augment.cutmix == 0


@pytest.mark.parametrize("words, said", [
    (["scores", "relo"], "curve of scores: got 'relo', expected a known name such as relu, "),
    (["scores", "--seeds", "0"], "--seeds: got 0, expected 1 or more; 3 show a spread. Raise it.\n"),
    (["scores", "--model.layer", "mhsa"],
     "--model.layer: got 'mhsa', expected keys that the study scores does not set itself. Leave out model.layer, model.stem and seed.\n"),
    (["window", "--model.layer.num_heads", "2"],
     "--model.layer.num_heads: got '2', expected keys that the study window does not set itself. Leave out model.layer, model.position, model.stem and seed.\n"),
    (["data_size", "--seed=3"], "--seed: got '3', expected keys that the study data_size does not set itself. Leave out model and seed.\n"),
    (["data_size", "--data.train_fraction", "0.001"],
     "--data.train_fraction: got 0.001, expected 0.01 or more, the share of the smallest part. Raise it.\n"),
    (["positions", "--data.img_size", "12"], "--data.img_size: got 12, expected a multiple of 8, to be cut in patches. Use 16 or 32.\n"),
])
def test_refused_before_anything_runs(study, words, said):
    code, _, err = study(*words, tiny=[])
    assert code == 2 and err.startswith(said) and not Path("runs").exists() and not Path(f"study-{words[0]}-smoke").exists()


def test_missing_images_and_options_that_do_not_fit(study, capsys):
    assert cli.main(["study", "scores", "--data.source", "folder:nowhere"]) == 65
    assert "folder:nowhere: got no such folder" in capsys.readouterr().err
    code, _, err = study("scores", "--model.options.block", "{num_heads: 5}")
    assert code == 2 and err.startswith("cifar10/vit_tiny of study/scores/softmax: model\n  got: num_heads: got 5, expected a divisor of dim=32.")


def test_words_about_differences():
    one, other = {"accuracy": 50.0, "accuracy sd": 1.0}, {"accuracy": 53.0, "accuracy sd": 1.0}
    assert told(one) == "50.0 % ± 1.0" and told({"accuracy": 50.0, "accuracy sd": None}) == "50.0 %"
    assert against(one, other) == "3.0 points below (more than twice the spread of 1.4)"
    assert re.fullmatch(r"2\.0 points above \(not more than twice the spread of 1\.4\)", against({**other, "accuracy": 52.0}, one))


def test_layers_are_averaged_and_seeds_spread():
    case = Case({"weights": "relu"}, ())
    rows = gather([Plan(case, [], "x")], [{"weights": "relu", "seed": s, "accuracy": 10.0 * s, "zeros": [0.0, 0.5 * s]} for s in (1, 2)])
    assert rows == [{"weights": "relu", "accuracy": 15.0, "accuracy sd": pytest.approx(50**0.5), "zeros": 0.375, "zeros sd": pytest.approx(0.1767767)}]


def test_accuracy_counts_every_image_once():
    class First(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return x

    batches = [(torch.eye(3), torch.tensor([0, 1, 0])), (torch.eye(3)[:1], torch.tensor([0]))]
    loader = type("Batches", (list,), {"count": 4})(batches)
    assert accuracy(First(), loader) == 75 and accuracy(First(), loader, lambda x: x.roll(1, 1)) == 25
