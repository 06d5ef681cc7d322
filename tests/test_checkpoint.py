"""The checkpoint folder: what is written is what is read, and anything else is refused by name."""

import hashlib
import json
import os
import re
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save
from torch import nn

import layerzoo as lz
from layerzoo import checkpoint
from layerzoo.checkpoint import CARD, CONFIG, FILES, LARGEST, MANIFEST, WEIGHTS, load_checkpoint, save_checkpoint, verify_checkpoint
from layerzoo.errors import DataRefused

OPTIONS = {"classes": [*"abcdefghij"], "mean": [0.5] * 3, "std": [0.25] * 3, "metrics": {"test/top1": 0.9, "test/loss": 1 / 3}}


def create(**options):
    return lz.create_model("hybrid_nano", num_classes=10, img_size=32, **options)


def refuses(message, kind=ValueError):
    return pytest.raises(kind, match="^" + re.escape(message))


def forge(folder, name="", data=b"", **fields):
    """A folder whose manifest agrees with itself: `name` holds `data`, and the manifest these fields."""
    manifest = json.loads((folder / MANIFEST).read_bytes())
    del manifest["sha256"]
    if name:
        (folder / name).write_bytes(data)
        manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest |= fields
    manifest["sha256"] = hashlib.sha256(checkpoint.to_json(manifest)).hexdigest()
    (folder / MANIFEST).write_bytes(checkpoint.to_json(manifest))


@pytest.fixture
def folder(tmp_path):
    return save_checkpoint(tmp_path / "run" / "checkpoint", create(), **OPTIONS)


def test_round_trip_is_bit_equal(tmp_path):
    model = create().eval()
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
    assert (manifest["format"], manifest["model"], manifest["recipe_name"], manifest["recipe_sha256"]) == (
        1,
        "hybrid_nano",
        "cifar10/x",
        "f" * 64,
    )
    assert manifest["versions"].keys() == {"python", "torch", "layerzoo"}
    assert sorted(p.name for p in folder.iterdir()) == sorted([*FILES, MANIFEST])
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_same_model_gives_the_same_bytes(tmp_path):
    model = create()
    one, two = (save_checkpoint(tmp_path / name, model, **OPTIONS) for name in "ab")
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in (*FILES, MANIFEST))


def test_card(tmp_path):
    import yaml

    recipe = {"meta": {"command": "layerzoo fit x", "summary": "A small net."}, "model": {"name": "hybrid_nano"}}
    text = (save_checkpoint(tmp_path / "a", create(), **OPTIONS, recipe=recipe) / CARD).read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["library_name"] == "layerzoo"
    assert front["pipeline_tag"] == "image-classification"
    for line in ("# hybrid_nano", "A small net.", "| test/top1 | 0.9000 |", "layerzoo fit x", "Classes: a, b, c, d, e, f, g, h, i, j"):
        assert line in text.splitlines()
    assert 'model = lz.load("FOLDER_OR_ADDRESS")' in text


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


def test_leftovers_of_dead_processes_are_swept(tmp_path):
    host = socket.gethostname()
    dead, alive = f".a.new-{host}-{dead_process()}", f".a.new-{host}-{os.getppid()}"
    others = [alive, f".a.new-elsewhere-{dead_process()}", f".b.new-{host}-{dead_process()}", f".a.new-{host}-1x"]
    for name in (dead, *others):
        (tmp_path / name).mkdir()
        (tmp_path / name / WEIGHTS).touch()
    save_checkpoint(tmp_path / "a", create(), **OPTIONS)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["a", *others])


def test_previous_folder_is_named_and_put_back(folder):
    old = folder.rename(folder.with_name(f".checkpoint.old-{socket.gethostname()}-{dead_process()}"))
    with refuses(f"{folder}: got no folder, expected a checkpoint folder. The previous one is {old}: rename it back.", DataRefused):
        load_checkpoint(folder)
    with refuses(f"{folder}: got a path that exists"):
        save_checkpoint(folder, create(), **OPTIONS)
    assert load_checkpoint(folder)
    assert not old.exists()


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


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_too_large_a_file_is_not_read(folder, name):
    if name != MANIFEST:
        forge(folder)
    os.truncate(folder / name, LARGEST[name] + 1)  # sparse
    with refuses(f"{folder}/{name}: got {LARGEST[name] + 1} bytes, expected at most {LARGEST[name]}. Copy", DataRefused):
        verify_checkpoint(folder)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "got malformed JSON (Expecting value"),
        (b"\xff", "got malformed JSON ("),
        (b"[" * 10**6, "got malformed JSON ("),
        (b'{"a": NaN}', "got malformed JSON (Out of range float"),
        (b'{"a": ' + b"9" * 5000 + b"}", "got malformed JSON ("),
        (b"[1]", "got [1], expected a JSON object. Copy"),
        (b'"' + b"a" * 200 + b'"', 'got "' + "a" * 96 + "..., expected a JSON object."),
        (b"{}", "got format null, expected format 1. Read it with the version of layerzoo that wrote it."),
        (b'{"format": 2}', "got format 2, expected format 1. Read"),
        (b'{"format": true}', "got format true, expected format 1. Read"),
        (b'{"format": 1}', "got altered content, expected content with the SHA-256 it states. Copy"),
    ],
)
def test_hostile_json_is_refused(folder, data, message):
    (folder / MANIFEST).write_bytes(data)
    with refuses(f"{folder}/manifest.json: {message}", DataRefused):
        verify_checkpoint(folder)


GOOD = {name: {"bytes": 1, "sha256": "0" * 64} for name in FILES}
FILES_EXPECTED = "the size and SHA-256 of model.safetensors, config.json, README.md within the size limits. Copy"


@pytest.mark.parametrize(
    "files",
    [
        None,
        [],
        {},
        GOOD | {"../evil": GOOD[CARD]},
        GOOD | {"/etc/passwd": GOOD[CARD]},
        GOOD | {MANIFEST: GOOD[CARD]},
        {k: GOOD[k] for k in FILES[1:]},
        *(
            GOOD | {WEIGHTS: GOOD[WEIGHTS] | bad}
            for bad in (
                {"bytes": -1},
                {"bytes": 2**60},
                {"bytes": 1.5},
                {"bytes": True},
                {"bytes": "1"},
                {"sha256": "0" * 63},
                {"sha256": ["0" * 64]},
                {"sha256": "G" * 64},
            )
        ),
        GOOD | {WEIGHTS: 3},
    ],
)
def test_hostile_file_lists_are_refused(folder, files):
    forge(folder, files=files)
    with pytest.raises(
        DataRefused, match=re.escape(f"{folder}/manifest.json: files: got ") + ".*" + re.escape(f"expected {FILES_EXPECTED}")
    ):
        verify_checkpoint(folder)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("classes", "abc", "a list of names"),
        ("classes", [1], "a list of names"),
        ("mean", ["1"], "a list of numbers"),
        ("std", None, "a list of numbers"),
        ("metrics", {"a": "b"}, "numbers by name"),
        ("metrics", {"a": True}, "numbers by name"),
        ("recipe", "x", "a resolved recipe or null"),
        ("recipe_name", 1, "text"),
        ("recipe_sha256", None, "text"),
        ("model", [], "text"),
        ("versions", [], "versions by package"),
    ],
)
def test_fields_of_the_wrong_type_are_refused(folder, key, value, expected):
    forge(folder, **{key: value})
    with refuses(f"{folder}/manifest.json: {key}: got {json.dumps(value)}, expected {expected}. Copy", DataRefused):
        verify_checkpoint(folder)


@pytest.mark.parametrize(
    "data", [b"", b"\x80\x02c__builtin__\neval\n.", (2**60).to_bytes(8, "little") + b"{}", b"\x02" + b"\0" * 7 + b"{]"]
)
def test_weights_that_are_no_safetensors_are_refused(folder, data):
    forge(folder, WEIGHTS, data)
    with pytest.raises(
        DataRefused, match=re.escape(f"{folder}/model.safetensors: got ") + ".*" + re.escape("expected a safetensors file. Copy")
    ):
        load_checkpoint(folder)


def test_config_that_is_no_models_is_refused(folder):
    forge(folder, CONFIG, b'{"model": "os.system"}')
    with refuses("model: got 'os.system', expected one of isotropic, pyramid. Pass the config of a layerzoo model."):
        load_checkpoint(folder)
    forge(folder, CONFIG, b"{")
    with refuses(f"{folder}/config.json: got malformed JSON (", DataRefused):
        load_checkpoint(folder)
