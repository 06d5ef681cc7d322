"""Checkpoints whose publisher is hostile: every hash agrees, the content does not."""

import json
import os
import re
import shutil

import pytest
from forge import OPTIONS, create, forge, refuses

from layerzoo.checkpoint import CARD, CONFIG, FILES, LARGEST, MANIFEST, WEIGHTS, load_checkpoint, save_checkpoint, verify_checkpoint
from layerzoo.errors import DataRefused


@pytest.fixture
def folder(tmp_path):
    folder = save_checkpoint(tmp_path / "run" / "checkpoint", create(), **OPTIONS)
    shutil.copy(folder / CONFIG, folder.parent)
    return folder


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
        (b"[" * 10**5, "got malformed JSON ("),
        (b"[" * 10**6, "got JSON of more than 262144 values, expected no more than that. Copy"),
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
        ("input_size", [3, 32], "channels, height and width"),
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


HEADER = b'{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}'
DTYPE = len(HEADER).to_bytes(8, "little") + HEADER + b"\0"


@pytest.mark.parametrize(
    "data, message", [
        (b"", "got malformed JSON (Expecting value: line 1 column 1 (char 0)), expected plain JSON. Copy"),
        ((2**60).to_bytes(8, "little") + b"{}", f"got a header of {2**60} bytes, expected at most {LARGEST[MANIFEST]}. Copy"),
        (b"\x02" + b"\0" * 7 + b"{]", "got malformed JSON (Expecting property name"),
        (DTYPE, "got 'F4', expected a safetensors file. Copy"), (DTYPE[:-1], "got Error while deserializing: ")]
)
def test_weights_that_are_no_safetensors_are_refused(folder, data, message):
    forge(folder, WEIGHTS, data)
    with refuses(f"{folder}/model.safetensors: {message}", DataRefused):
        load_checkpoint(folder)


def test_config_that_is_no_models_is_refused(folder):
    forge(folder, CONFIG, b'{"model": "os.system"}')
    do = "expected a config that builds a model. Register layers of your own with layerzoo.register_layer first."
    with refuses(f"{folder}/config.json: got Refusal: model: got 'os.system', expected one of isotropic, pyramid.", DataRefused):
        load_checkpoint(folder)
    good = json.loads((folder.parent / "config.json").read_bytes())
    bad = [
        ({"layer": ["my_layer"] * 2}, "Refusal: layers name: got 'my_layer', expected a known name such as "),
        ({"dims": [10**12, 2]}, "RuntimeError: "), ({"depths": None}, "TypeError: "), ({"input_size": []}, "ValueError: "),
        ({"dims": "ab"}, ""), ({"layer": [["mhsa"]]}, ""), ({"head": 3}, "")]
    for change, got in bad:
        forge(folder, CONFIG, json.dumps(good | change).encode())
        start = re.escape(f"{folder}/config.json: got {got}")
        with pytest.raises(DataRefused, match=f"^{start}(.|\n)*{re.escape(do)}$"):
            load_checkpoint(folder)
    forge(folder, CONFIG, b"{")
    with refuses(f"{folder}/config.json: got malformed JSON (", DataRefused):
        load_checkpoint(folder)
