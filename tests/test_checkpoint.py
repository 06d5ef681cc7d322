"""The checkpoint folder: what is written is what is read, and anything else is refused by name."""

import hashlib
import os
import re
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from faults.forge import OPTIONS, create, forge, refuses
from safetensors.torch import load_file, save
from torch import nn

import layerzoo as lz
from layerzoo import checkpoint
from layerzoo.checkpoint import CARD, FILES, MANIFEST, WEIGHTS, load_checkpoint, save_checkpoint, verify_checkpoint
from layerzoo.errors import DataRefused


@pytest.fixture
def folder(tmp_path):
    return save_checkpoint(tmp_path / "run" / "checkpoint", create(), **OPTIONS)


def test_round_trip_is_bit_equal(tmp_path):
    model = create().eval()
    assert any(isinstance(part, nn.BatchNorm2d) for part in model.modules())
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(torch.rand(tensor.shape) * 3)
    recipe = {"meta": {"command": "layerzoo fit x", "summary": "A small net."}, "model": {"name": "hybrid_nano"}, "sizes": (1, 2)}
    folder = save_checkpoint(tmp_path / "a", model, **OPTIONS, recipe=recipe, recipe_sha256="f" * 64, recipe_name="cifar10/x")
    state = torch.get_rng_state()
    again = load_checkpoint(folder)
    assert torch.equal(torch.get_rng_state(), state), "loading drew random numbers"
    assert not again.training
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(again.state_dict()[k], v) for k, v in model.state_dict().items())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(images), model(images))
    manifest = again.manifest
    assert manifest == verify_checkpoint(folder)
    assert {k: manifest[k] for k in OPTIONS} == OPTIONS
    assert manifest["recipe"] == recipe | {"sizes": [1, 2]}
    facts = {"format": 1, "model": "hybrid_nano", "recipe_name": "cifar10/x", "recipe_sha256": "f" * 64, "input_size": [3, 32, 32]}
    assert {k: manifest[k] for k in facts} == facts
    assert manifest["versions"].keys() == {"python", "torch", "timm", "layerzoo"}
    assert sorted(p.name for p in folder.iterdir()) == sorted([*FILES, MANIFEST])
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_comes_back(tmp_path, dtype):
    model = create().to(dtype).eval()
    again = load_checkpoint(save_checkpoint(tmp_path / "a", model, **OPTIONS))
    assert again.head.fc.weight.dtype == dtype
    images = torch.randn(1, 3, 32, 32, dtype=dtype)
    assert torch.equal(again(images), model(images))


@pytest.mark.slow
@pytest.mark.parametrize("name", lz.list_models())
def test_every_preset_comes_back(tmp_path, name):
    model = lz.create_model(name, num_classes=10, img_size=32).eval()
    again = load_checkpoint(save_checkpoint(tmp_path / "a", model, **OPTIONS))
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(again(images), model(images))


def test_same_model_gives_the_same_bytes(tmp_path):
    model = create()
    one, two = (save_checkpoint(tmp_path / name, model, **OPTIONS) for name in "ab")
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in (*FILES, MANIFEST))


def test_card(tmp_path):
    import yaml

    recipe = {
        "meta": {"command": "layerzoo fit x", "summary": "A small net."}, "model": {"name": "hybrid_nano"},
        "data": {"source": "torch/cifar10"}}
    text = (save_checkpoint(tmp_path / "a", create(), **OPTIONS, recipe=recipe) / CARD).read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["library_name"] == "layerzoo"
    assert front["pipeline_tag"] == "image-classification"
    for line in ("# hybrid_nano", "A small net.", "| test/top1 | 0.9000 |", "Classes: a, b, c, d, e, f, g, h, i, j",
                 "Data: torch/cifar10. Licence of the weights: Apache-2.0; that of the data is its owners'."):
        assert line in text.splitlines()
    assert 'model = lz.load("FOLDER_OR_ADDRESS")' in text
    assert "`layerzoo fit recipe.yaml`" in text
    assert yaml.safe_load(text.split("```yaml\n")[1].split("```")[0]) == recipe
    assert "The recipe of its training is not stated." in (save_checkpoint(tmp_path / "b", create(), **OPTIONS) / CARD).read_text()


def test_verifying_does_not_load_torch(folder):
    code = f"import sys; from layerzoo import checkpoint; checkpoint.verify_checkpoint({str(folder)!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_tied_tensors_come_back_under_each_name(tmp_path):
    model = create()
    blocks = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    same = [m for m in blocks if m.weight.shape == blocks[0].weight.shape]
    same[1].weight = same[0].weight
    again = load_checkpoint(save_checkpoint(tmp_path / "a", model, **OPTIONS)).state_dict()
    assert all(torch.equal(again[k], v) for k, v in model.state_dict().items())


def test_tensor_names_are_never_paths(folder, tmp_path):
    tensors = load_file(folder / WEIGHTS)
    tensors["../../escaped"] = torch.zeros(1)
    forge(folder, WEIGHTS, save(tensors))
    with refuses(f"{folder}/model.safetensors: tensor ../../escaped: got float32 (1,), expected no such tensor. Check that config.json is"):
        load_checkpoint(folder)
    assert not [*tmp_path.rglob("escaped*")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("head.fc.bias"),
            "tensor head.fc.bias: got no such tensor, expected float32 (10,). Check that config.json is that of these weights.",
        ),
        (lambda t: t.update({"head.fc.bias": torch.zeros(11)}), "tensor head.fc.bias: got float32 (11,), expected float32 (10,). Check"),
        (
            lambda t: t.update({"head.fc.bias": torch.zeros(10).double()}),
            "tensor head.fc.bias: got float64 (10,), expected float32 (10,). Check",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder, change, message):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    forge(folder, WEIGHTS, save(tensors))
    with refuses(f"{folder}/model.safetensors: {message}", DataRefused):
        load_checkpoint(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_saved(tmp_path, value):
    model = create()
    with torch.no_grad():
        model.head.fc.weight[3, 4] = value
    with refuses("tensor head.fc.weight: got values that are not finite, expected finite weights. Nothing was written; train with a lower"):
        save_checkpoint(tmp_path / "a", model, **OPTIONS)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["a"]}, "classes: got 1 values, expected 10, as the model has. Pass one per class or channel."),
        ({"mean": [0.5]}, "mean: got 1 values, expected 3, as the model has."),
        ({"std": [0.5]}, "std: got 1 values, expected 3, as the model has."),
        (
            {"metrics": {"test/loss": float("nan")}},
            "metrics.test/loss: got nan, expected a finite number. Leave it out, or find out why it is not.",
        ),
        (
            {"metrics": {"x": torch.ones(1)}},
            "metrics.x: got Tensor, expected text, a number, a list or a dict with text keys. Pass plain values.",
        ),
        ({"metrics": {"x": "high"}}, 'checkpoint: metrics: got {"x": "high"}, expected numbers by name. Correct the argument.'),
        (
            {"recipe": {"model": {"name": "x"}, "a": [{1: 2}]}},
            "recipe.a[0]: got dict, expected text, a number, a list or a dict with text keys.",
        ),
    ],
)
def test_values_that_do_not_fit_are_not_saved(tmp_path, options, message):
    with refuses(message):
        save_checkpoint(tmp_path / "a", create(), **OPTIONS | options)
    assert not [*tmp_path.iterdir()]


def test_class_in_the_config_is_not_saved(tmp_path):
    from layerzoo.layers.attention.mhsa import MHSA

    with refuses(
        "config.layer[1]: got the class MHSA, expected a name. Register it with layerzoo.register_layer and build the model by its name."
    ):
        save_checkpoint(tmp_path / "a", create(layer=["depthwise_conv", MHSA]), **OPTIONS)


def test_model_that_its_config_does_not_rebuild_is_not_saved(tmp_path):
    model = create()
    model.head.fc = nn.Linear(64, 10, bias=False)
    with pytest.raises(DataRefused, match=re.escape("tensor head.fc.bias: got no such tensor, expected float32 (10,).")):
        save_checkpoint(tmp_path / "a", model, **OPTIONS)
    assert not [*tmp_path.iterdir()]


def test_existing_folder_is_kept(folder):
    before = (folder / MANIFEST).read_bytes()
    with refuses(f"{folder}: got a path that exists, expected a new folder. Choose another name, or pass overwrite=True."):
        save_checkpoint(folder, create(), **OPTIONS)
    assert (folder / MANIFEST).read_bytes() == before


def test_overwrite_replaces_checkpoints_alone(folder, tmp_path):
    model = create()
    assert save_checkpoint(folder, model, **OPTIONS, overwrite=True) == folder
    assert torch.equal(load_checkpoint(folder).head.fc.weight, model.head.fc.weight)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").touch()
    message = f"{tmp_path}/home: got a path that exists, expected a new folder or a checkpoint. Delete it or choose another name."
    with refuses(message):
        save_checkpoint(tmp_path / "home", model, **OPTIONS, overwrite=True)
    assert (tmp_path / "home" / "thesis.tex").exists()


def dead_process():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def hidden(name, state, process, host=None):
    return f".{name}.{state}-{host or socket.gethostname()}-{process}-0"


def test_leftovers_of_dead_processes_are_swept(tmp_path):
    dead = [hidden("a", "new", dead_process()), hidden("b", "new", dead_process()), hidden("a", "new", os.getpid()).replace("-0", "-999")]
    others = [hidden("a", "new", os.getppid()), hidden("a", "new", dead_process(), host="elsewhere"), ".a.new-x"]
    for name in (*dead, *others):
        (tmp_path / name).mkdir()
        (tmp_path / name / WEIGHTS).touch()
    save_checkpoint(tmp_path / "a", create(), **OPTIONS)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["a", *others])


def test_previous_folder_is_read_and_put_back(folder):
    old, before = folder.with_name(hidden(folder.name, "old", dead_process())), verify_checkpoint(folder)
    folder.rename(old)
    message = f"{folder}: an overwrite was cut short; what is read is the previous checkpoint, {old.name}."
    with pytest.warns(UserWarning, match=re.escape(message)):
        assert load_checkpoint(folder).manifest == before
    with refuses(f"{folder}: got a path that exists"):
        save_checkpoint(folder, create(), **OPTIONS)
    assert verify_checkpoint(folder) == before
    assert not old.exists()


def test_threads_save_beside_each_other(tmp_path):
    model = create()
    with ThreadPoolExecutor(4) as threads:
        made = [*threads.map(lambda i: save_checkpoint(tmp_path / str(i % 8), model, **OPTIONS, overwrite=True), range(8))]
    assert sorted(tmp_path.iterdir()) == made
    assert len({(path / MANIFEST).read_bytes() for path in made}) == 1


def test_failed_swap_puts_the_old_folder_back(folder, monkeypatch):
    rename, before = os.rename, (folder / MANIFEST).read_bytes()

    def fail(source, target):
        if ".new-" in str(source):
            raise OSError("disk")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="disk"):
        save_checkpoint(folder, create(), **OPTIONS, overwrite=True)
    assert (folder / MANIFEST).read_bytes() == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_staged_folder_vanishes_when_its_block_raises(tmp_path):
    with pytest.raises(KeyboardInterrupt), checkpoint.staged(tmp_path / "a") as temp:
        (temp / WEIGHTS).touch()
        raise KeyboardInterrupt
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with refuses(f"{folder}/{name}: got no file, expected one of the files of a checkpoint. Copy or pull the folder again.", DataRefused):
        verify_checkpoint(folder)


def test_missing_folder_is_named(tmp_path):
    with refuses(f"{tmp_path}/a: got no folder, expected a checkpoint folder. Check the path.", DataRefused):
        verify_checkpoint(tmp_path / "a")


@pytest.mark.parametrize("name", FILES)
def test_truncated_and_changed_files_are_named(folder, name):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-1])
    with refuses(f"{folder}/{name}: got {len(data) - 1} bytes, expected {len(data)}, as manifest.json states. Copy", DataRefused):
        verify_checkpoint(folder)
    other = data[:-1] + bytes([data[-1] ^ 1])
    (folder / name).write_bytes(other)
    got, stated = (hashlib.sha256(d).hexdigest()[:12] for d in (other, data))
    with refuses(f"{folder}/{name}: got SHA-256 {got}..., expected {stated}..., as manifest.json states. Copy", DataRefused):
        verify_checkpoint(folder)
