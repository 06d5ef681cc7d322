"""Training checkpoints: what comes back is what was saved, and what is not whole is refused by name."""

import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections import namedtuple

import pytest
import torch

from layerzoo.checkpoint import to_json
from layerzoo.errors import DataRefused, SecurityRefused
from layerzoo.train.plain import flatten, unflatten
from layerzoo.train.saving import newest_whole, place, read, saved, verify, write

CHECKPOINT = {
    "epoch": 1, "global_step": 3, "state_dict": {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.zeros(0)},
    "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0), "moment": torch.arange(24.0).view(1, 2, 3, 4).contiguous(memory_format=torch.channels_last)}},
                          "param_groups": [{"betas": (0.9, 0.999), "lr": 0.1, "best": math.inf, "params": [0]}]}],
    "callbacks": {"Keeper": {"~odd": None, "seen": [1, 2]}}, "none": None}


def same(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other) and one.stride() == other.stride()
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(v, other[k]) for k, v in one.items())
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


@pytest.fixture
def folder(tmp_path):
    write(place(tmp_path, 3), CHECKPOINT, {"seed": 3})
    return place(tmp_path, 3)


def test_what_was_saved_comes_back_with_its_types_and_layouts(folder):
    assert same(CHECKPOINT, read(folder))
    assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", "model.safetensors", "state.json", "state.safetensors"]
    assert verify(folder)["seed"] == 3 and [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_tensors_with_memory_in_common_come_back_equal(tmp_path):
    table = torch.arange(8.0)
    write(place(tmp_path, 0), CHECKPOINT | {"state_dict": {"a": table, "b": table, "c": table[2:4]}}, {})
    assert same({"a": table, "b": table, "c": table[2:4]}, read(place(tmp_path, 0))["state_dict"])


def test_a_tensor_of_a_name_that_is_taken():
    tensors = {}
    state = flatten({"a": {"b": torch.zeros(1)}, "a.b": torch.ones(1)}, "x", tensors)
    assert same({"a": {"b": torch.zeros(1)}, "a.b": torch.ones(1)}, unflatten(json.loads(json.dumps(state)), tensors))


def test_what_is_no_plain_value_is_refused_before_anything_is_written(tmp_path):
    message = (
        "training checkpoint: callbacks.Mine.where: got pathlib.PurePosixPath, expected tensors, text, numbers, and dicts, lists and tuples of these. "
        "Nothing was saved. Keep such a value out of state_dict().")
    with pytest.raises(ValueError, match=re.escape(message)):
        write(place(tmp_path / "ckpt", 3), CHECKPOINT | {"callbacks": {"Mine": {"where": __import__("pathlib").PurePosixPath("x")}}}, {})
    assert not (tmp_path / "ckpt").exists()


def test_no_room(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 10**6))
    with pytest.raises(OSError, match=re.escape("a checkpoint takes 1 MB, 1 MB are free")) as caught:
        write(place(tmp_path, 3), CHECKPOINT, {})
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path) and not saved(tmp_path)


def restated(folder, **changes):
    """The manifest with these entries, and with the hash that belongs to them."""
    manifest = json.loads((folder / "manifest.json").read_text()) | changes
    manifest.pop("sha256")
    manifest["sha256"] = hashlib.sha256(to_json(manifest)).hexdigest()
    (folder / "manifest.json").write_bytes(to_json(manifest))


def broken_state(folder):
    files = json.loads((folder / "manifest.json").read_text())["files"]
    data = b'{"a": {"~tensor": "b"}}'
    (folder / "state.json").write_bytes(data)
    restated(folder, files=files | {"state.json": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}})


AGAIN = "Delete the folder: the one before it is used then."


@pytest.mark.parametrize("harm, message", [
    (lambda f: (f / "manifest.json").unlink(), f"manifest.json: got no file, expected the manifest of a training checkpoint. {AGAIN}"),
    (lambda f: (f / "manifest.json").write_text("{}"), f"manifest.json: got altered content, expected the manifest of a training checkpoint. {AGAIN}"),
    (lambda f: restated(f, format=9), "manifest.json: got format 9, expected format 1. Resume with the version of layerzoo that wrote it."),
    (lambda f: (f / "state.json").unlink(), "state.json: got no file, expected "),
    (lambda f: os.truncate(f / "state.safetensors", 20), "state.safetensors: got 20 bytes with SHA-256 "),
    (broken_state, "got KeyError: 'b', expected the state of a training"),
])
def test_what_is_not_whole_is_refused(folder, harm, message):
    harm(folder)
    with pytest.raises(DataRefused, match=re.escape(message)):
        read(folder)


def test_a_link_is_not_followed(folder, tmp_path):
    (tmp_path / "elsewhere").write_bytes((folder / "state.json").read_bytes())
    (folder / "state.json").unlink()
    (folder / "state.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SecurityRefused, match="state.json: got a link to "):
        verify(folder)


def test_the_one_before_is_taken_and_said(folder):
    write(place(folder.parent, 7), CHECKPOINT | {"global_step": 7}, {})
    os.truncate(place(folder.parent, 7) / "model.safetensors", 9)
    with pytest.warns(UserWarning, match=r"model.safetensors: got 9 bytes .* It goes on from step-000000003 instead"):
        assert newest_whole(folder.parent) == folder
    os.truncate(folder / "model.safetensors", 9)
    with pytest.raises(DataRefused, match=r"expected a training checkpoint that is whole. Begin anew with --fresh."):
        newest_whole(folder.parent)
    assert newest_whole(folder.parent / "none") is None
    write(place(folder.parent, 7), CHECKPOINT | {"global_step": 7}, {})  # over the damaged one
    assert newest_whole(folder.parent) == place(folder.parent, 7)


def test_one_that_is_there_and_whole_is_replaced_whole(folder):
    write(folder, CHECKPOINT | {"none": 5}, {})
    assert read(folder)["none"] == 5
