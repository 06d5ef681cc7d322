"""Figures of heads: the weights are those that the layers use, and pictures are drawn for any model."""

import json
import re

import pytest
import torch

import layerzoo as lz
from layerzoo.report.attention_maps import attention_maps, draw_attention, draw_sharpness, head_weights

OPTIONS = {"dim": 12, "depth": 2, "block": {"num_heads": 2}}


def model_of(layer):
    return lz.create_model("attention_cnn", num_classes=3, img_size=32, layer=layer, options={**OPTIONS, "stem": {"name": "patchify", "patch_size": 4}})


@pytest.mark.parametrize("content", [False, True])
def test_weights_are_those_of_the_layer(content):
    layer = lz.create_layer("learned_relative", dim=6, num_heads=3, grid=(4, 5), content=content).double()
    x = torch.randn(1, 6, 4, 5, dtype=torch.double)
    weights = torch.stack([head_weights(layer, x, (i // 5, i % 5)).flatten(1) for i in range(20)], 1)  # (h, N, N)
    heads = weights @ x.flatten(2).mT
    expected = layer.proj(layer.value(heads.transpose(0, 1).flatten(1)))
    assert torch.allclose(layer(x)[0].flatten(1).T, expected, atol=1e-12)


def test_every_layer_of_a_model_is_seen_once_and_ffns_are_not():
    maps = attention_maps(model_of("quadratic_attention"), torch.randn(2, 3, 32, 32))
    assert {name: tuple(m.shape) for name, m in maps.items()} == {f"stages.{i}.layer": (2, 8, 8) for i in range(2)}
    assert all(torch.allclose(m.sum((1, 2)), torch.ones(len(m))) for m in maps.values())
    names = attention_maps(lz.create_model("vit_tiny", num_classes=3, img_size=16, options={"dim": 8, "depth": 2, "block": {"num_heads": 2}}), torch.randn(1, 3, 16, 16))
    assert [tuple(m.shape) for m in names.values()] == [(1, 4, 4)] * 2


@pytest.mark.parametrize("layer", ["quadratic_attention", "quadratic_generalized", {"name": "learned_relative", "content": True}, "mhsa"], ids=str)
def test_pictures(layer, tmp_path):
    model = model_of(layer)
    history = tmp_path / "centers.jsonl"
    names = {n: m.position.centers.tolist() for n, m in model.named_modules() if hasattr(getattr(m, "position", None), "centers")}
    rows = [{"epoch": e, "centers": {f"{n}.position": c for n, c in names.items()}} for e in (0, 1, 1)]
    history.write_text("\n".join(map(json.dumps, rows)))
    draw_attention(model, torch.randn(2, 3, 32, 32), tmp_path / "a.png", query=(0.1, 0.9), history=history)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_error_falls_until_the_rounding_of_each_dtype(tmp_path):
    rows = draw_sharpness(tmp_path / "alpha.png")
    assert (tmp_path / "alpha.png").read_bytes().startswith(b"\x89PNG")
    assert rows[0]["float32"] > 0.5 and max(rows[-1]["float32"], rows[-3]["float32"]) < 1e-5 and rows[-1]["float64"] < 1e-12 and rows[-1]["bfloat16"] < 0.05


def test_refused():
    with pytest.raises(ValueError, match=re.escape("query: got (0.5, 1.0), expected (row, column) as shares in [0, 1). Use (0.5, 0.5) for the middle.")):
        attention_maps(model_of("mhsa"), torch.randn(1, 3, 32, 32), query=(0.5, 1.0))
    with pytest.raises(ValueError, match=re.escape("model: got Linear, expected a model that holds layers of the zoo. Pass a checkpoint of layerzoo.")):
        attention_maps(torch.nn.Linear(2, 2), torch.randn(1, 2))


def test_centres_are_kept_for_each_epoch_of_a_run(tmp_path, monkeypatch):
    from layerzoo.recipe import read_recipe
    from layerzoo.train import run

    monkeypatch.chdir(tmp_path)
    callbacks = '[{"class_path": "layerzoo.train.centers.HeadCenters"}]'
    recipe = read_recipe("attention_vs_conv/quadratic", [
        "data.source=digits", "data.train_fraction=0.05", "data.batch_size=20", "trainer.max_epochs=2", "task.schedule.warmup_epochs=0", "model.options.dim=8",
        "model.options.depth=1", "model.stem.name=patchify", "model.stem.patch_size=8", "logging.wandb=disabled", f"trainer.callbacks={callbacks}"])
    folder = run.fit(recipe, recipe_name="quadratic").folder
    rows = [json.loads(line) for line in (folder / "centers.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in rows] == [0, 1, 2] and len(rows[0]["centers"]["stages.0.layer.position"]) == 9
    assert rows[0]["centers"] != rows[2]["centers"]
