"""Folders of every released format, kept byte for byte, read to the same values for ever; unknown formats are refused by name."""

import hashlib
import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from layerzoo.checkpoint import load_checkpoint, parse_manifest, to_json, verify_checkpoint
from layerzoo.errors import DataRefused
from layerzoo.train.saving import newest_whole, place, read, verify

GOLDEN = Path(__file__).parent / "golden"
sys.path.append(str(GOLDEN))
import make  # noqa: E402

FOLDERS = sorted(GOLDEN.glob("format-*"))


def same(one, other):
    """Types, values, dtypes, shapes and layouts."""
    assert type(one) is type(other), (one, other)
    if isinstance(one, dict):
        assert [*one] == [*other] and all(same(one[key], other[key]) for key in one)
    elif isinstance(one, list | tuple):
        assert len(one) == len(other) and all(map(same, one, other))
    elif isinstance(one, Tensor):
        assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride()) and torch.equal(one, other)
    else:
        assert one == other or (math.isnan(one) and math.isnan(other))
    return True


def test_there_is_one_of_each_format():
    assert [folder.name for folder in FOLDERS] == ["format-1"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_training_checkpoints(folder):
    found = newest_whole(folder / "ckpt")
    assert same(read(found), make.training())
    manifest = verify(found)
    assert {key: manifest[key] for key in make.ABOUT} == make.ABOUT and (manifest["step"], manifest["epoch"]) == (12, 2)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_published_checkpoints(folder):
    loaded, made = load_checkpoint(folder / "published"), make.model()
    assert same(dict(loaded.state_dict()), dict(made.state_dict()))
    assert {key: loaded.manifest[key] for key in make.PUBLISHED} == make.PUBLISHED
    logits = loaded(make.counted((1, 3, 8, 8)))
    assert torch.allclose(logits, torch.tensor(LOGITS), rtol=1e-4, atol=1e-6), logits.tolist()


LOGITS = [[-0.13386669754981995, -0.03335314989089966, -0.048793725669384]]  # of the first version that wrote it
FORMATS = [2, 0, -1, 10**400, "1", 1.0, 1e308, True, False, None, [1], {"1": 1}, "x" * 10_000]


def sealed(manifest):
    """Its bytes, with the SHA-256 of the rest, as the version that wrote it would have them."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return to_json(rest | {"sha256": hashlib.sha256(to_json(rest)).hexdigest()})


@pytest.mark.parametrize("version", FORMATS, ids=lambda version: repr(version)[:12])
def test_other_formats_of_a_training_checkpoint_are_refused(tmp_path, version):
    for step in (12, 13):
        shutil.copytree(GOLDEN / "format-1" / "ckpt" / "step-000000012", place(tmp_path, step))
    path = place(tmp_path, 13) / "manifest.json"
    path.write_bytes(sealed(json.loads(path.read_bytes()) | {"format": version}))
    said = r"manifest.json: got format .{1,40}, expected format 1\. Resume with the version of layerzoo that wrote it\."
    with pytest.raises(DataRefused, match=said):
        verify(path.parent)
    with pytest.warns(UserWarning, match=rf"{said} It goes on from step-000000012 instead\."):
        assert newest_whole(tmp_path) == place(tmp_path, 12)


@pytest.mark.parametrize("version", FORMATS, ids=lambda version: repr(version)[:12])
def test_other_formats_of_a_published_one_are_refused(version):
    manifest = verify_checkpoint(GOLDEN / "format-1" / "published")
    with pytest.raises(DataRefused, match=r"^m: got format .{1,100}, expected format 1\. Read it with the version of layerzoo that wrote it\.$"):
        parse_manifest(sealed(manifest | {"format": version}), "m")


@pytest.mark.parametrize("files", [
    None, [], {}, {"model.safetensors": {}}, {name: {"bytes": 1} for name in ("model.safetensors", "state.safetensors", "state.json")},
    {name: 1 for name in ("model.safetensors", "state.safetensors", "state.json")}], ids=repr)
def test_a_manifest_without_its_list_is_refused(tmp_path, files):
    shutil.copytree(GOLDEN / "format-1" / "ckpt" / "step-000000012", place(tmp_path, 12))
    path = place(tmp_path, 12) / "manifest.json"
    path.write_bytes(sealed(json.loads(path.read_bytes()) | {"files": files}))
    with pytest.raises(DataRefused, match=r"manifest.json: got no such list, expected the size and SHA-256 of model.safetensors, state.safetensors, state.json"):
        verify(path.parent)


def test_keys_that_are_missing_or_too_many_are_named(tmp_path):
    """What a checkpoint of another version of a model looks like: refused by the name of the tensor."""
    from safetensors.torch import load, save

    published = shutil.copytree(GOLDEN / "format-1" / "published", tmp_path / "p")
    tensors = load((published / "model.safetensors").read_bytes())
    name = sorted(tensors)[0]
    for change, said in (({"extra": torch.zeros(2)}, r"tensor extra: got float32 \(2,\), expected no such tensor"), ({name: None}, f"tensor {name}: got no such tensor")):
        data = save({key: value for key, value in (tensors | change).items() if value is not None})
        manifest = json.loads((published / "manifest.json").read_bytes())
        manifest["files"]["model.safetensors"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        (published / "model.safetensors").write_bytes(data)
        (published / "manifest.json").write_bytes(sealed(manifest))
        with pytest.raises(DataRefused, match=said):
            load_checkpoint(published)
