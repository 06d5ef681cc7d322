"""Checkpoints by name, folder and address, by way of a cache."""

import hashlib
import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from faults.forge import refuses
from faults.server import serve

import layerzoo as lz
from layerzoo import hub
from layerzoo.checkpoint import CONFIG, FILES, MANIFEST, WEIGHTS, save_checkpoint
from layerzoo.errors import DataRefused

ENTRY = {
    "manifest_sha256": "0" * 64, "sources": [], "bytes": 0, "model": "pyramid", "recipe": "cifar10/x", "metrics": {"test/top1": 0.5},
    "num_classes": 10, "input_size": [3, 32, 32]}
CHECK = "Check the address, or try again later."


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = lz.create_model("hybrid_nano", num_classes=10, img_size=32)
    return save_checkpoint(
        tmp_path_factory.mktemp("made") / "a",
        model,
        classes=[*"abcdefghij"],
        mean=[0.5] * 3,
        std=[0.25] * 3,
        metrics={"test/top1": 0.5},
        recipe_name="cifar10/x",
    )


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LAYERZOO_OFFLINE", raising=False)
    return tmp_path / "cache" / "checkpoints"


@pytest.fixture
def root(tmp_path, monkeypatch, cache):
    monkeypatch.setenv("LAYERZOO_CHECKPOINTS", str(tmp_path / "root"))
    return tmp_path / "root"


def write_index(root, **entries):
    """An index of these entries, each with what a whole entry has; those that are no dict as they are."""
    entries = {name: ENTRY | entry if isinstance(entry, dict) else entry for name, entry in entries.items()}
    root.mkdir(exist_ok=True)
    (root / "index.json").write_text(json.dumps({"format": 1, "checkpoints": entries}))


@pytest.fixture
def server(folder):
    with serve(folder) as handler:
        yield handler


def test_what_ships_is_an_index():
    assert isinstance(lz.list_checkpoints(), list)
    assert all(hub.published(name)["manifest_sha256"] for name in lz.list_checkpoints())


def test_listing_does_not_load_torch():
    code = "import sys, layerzoo; layerzoo.list_checkpoints(); assert 'torch' not in sys.modules and 'huggingface_hub' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_folder_is_used_where_it_lies(folder, cache, monkeypatch):
    assert hub.pull(folder) == folder
    monkeypatch.chdir(folder.parent)
    assert hub.pull("a") == Path("a")
    assert lz.load("./a").manifest["recipe_name"] == "cifar10/x"
    with refuses("nowhere/x: got no folder, expected a checkpoint folder. Check the path.", DataRefused):
        lz.load("nowhere/x")


def test_published_name(folder, root):
    entry = hub.publish(folder, "small-net", root)
    digest = sha256(folder / MANIFEST)
    assert entry == hub.published("small-net") == ENTRY | {
        "manifest_sha256": digest, "sources": ["small-net"], "bytes": sum((folder / name).stat().st_size for name in FILES)}
    assert lz.list_checkpoints() == ["small-net"]
    for address in ("small-net", f"small-net@{digest}", f"small-net@{digest[:8]}"):
        assert hub.pull(address) == root / "small-net"
    assert torch.equal(lz.load("small-net").head.fc.weight, lz.load(folder).head.fc.weight)
    for pin in ("", digest[:7], "0" * 64, digest.upper()):
        with refuses(
            f"small-net@{pin}: got a pin that does not fit, expected 8 or more first digits of {digest}. Correct it, or leave it out."
        ):
            hub.pull(f"small-net@{pin}")
    assert sorted(p.name for p in root.iterdir()) == ["index.json", "small-net"]


def test_unknown_name(folder, root):
    hub.publish(folder, "small-net", root)
    message = "checkpoint: got 'smal-net', expected a known name such as small-net. layerzoo.list_checkpoints() lists all."
    with refuses(message):
        lz.load("smal-net")
    with refuses(message):
        hub.published("smal-net")


def test_name_never_changes_its_content(folder, root, tmp_path):
    hub.publish(folder, "small-net", root)
    index = json.loads((root / "index.json").read_text())
    index["checkpoints"]["small-net"]["sources"].append("https://example.org/a")
    (root / "index.json").write_text(json.dumps(index))
    assert hub.publish(folder, "small-net", root)["sources"] == ["small-net", "https://example.org/a"]
    model = lz.create_model("hybrid_nano", num_classes=10, img_size=32)
    other = save_checkpoint(tmp_path / "b", model, classes=[*"abcdefghij"], mean=[0.5] * 3, std=[0.25] * 3, metrics={})
    with refuses("checkpoint name: got 'small-net', published with other content, expected a new name. Choose another name."):
        hub.publish(other, "small-net", root)
    assert hub.pull("small-net") == root / "small-net"


@pytest.mark.parametrize("name", ["", "../a", "a/b", "/a", ".a", "a b", "a\n", "a@b", "index.json"])
def test_names_are_plain(folder, root, name):
    with refuses(f"checkpoint name: got {name!r}, expected letters, digits, '.', '_' and '-'. Choose a plain name."):
        hub.publish(folder, name, root)
    assert not root.exists()


def test_altered_published_folder_is_refused(folder, root):
    hub.publish(folder, "a", root)
    path = root / "a" / CONFIG
    path.write_bytes(path.read_bytes().replace(b"10", b"11"))
    with pytest.raises(
        DataRefused, match=f"^{re.escape(f'checkpoint a: got a ({path}: got SHA-256 ')}.*expected one source that has it. Try again later"
    ):
        lz.load("a")
    write_index(root, a={"manifest_sha256": "0" * 64, "sources": []})
    with refuses("checkpoint a: got no source, expected one source that has it. Try again later, or correct the index.", DataRefused):
        lz.load("a")


def test_manifest_that_the_index_does_not_state_is_refused(folder, root, server):
    shutil.copytree(folder, root / "a")
    write_index(root, a={"manifest_sha256": "0" * 64, "sources": ["a", server.url]})
    got = f"a manifest with SHA-256 {sha256(folder / MANIFEST)[:12]}..., expected 000000000000..., as the index states. {CHECK}"
    with refuses(f"checkpoint a: got a ({root}/a: got {got}); {server.url} ({server.url}: got {got}), expected", DataRefused):
        lz.load("a")
    assert server.asked == ["/a/manifest.json"]


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        {"manifest_sha256": "x"},
        {"manifest_sha256": None},
        {"sources": "a"},
        {"bytes": "1"},
        {"metrics": []},
        {"recipe": None},
        *({"sources": [s]} for s in ("../a", "/etc", "a/../../b", "file:///etc", 3, "")),
    ],
)
def test_hostile_entries_are_refused(root, entry):
    write_index(root, a=entry)
    expected = "a plain name with the fields that help(layerzoo.hub) lists"
    with refuses(f"{root}/index.json: got the entry 'a', expected {expected}. Correct it.", DataRefused):
        lz.list_checkpoints()


def test_hostile_index_is_refused(root):
    message = (
        f"{root}/index.json: got no file, expected an index of checkpoints. Set LAYERZOO_CHECKPOINTS to a folder that has one, or unset it."
    )
    with refuses(message, DataRefused):
        lz.list_checkpoints()
    write_index(root, **{"../a": {"manifest_sha256": "0" * 64, "sources": []}})
    with refuses(f"{root}/index.json: got the entry '../a', expected a plain name", DataRefused):
        lz.list_checkpoints()
    for text, got in (
        ("{", "malformed JSON ("),
        ("[]", "[], expected a JSON object"),
        ('{"format": 2}', "format 2, expected format 1 with checkpoints. Upgrade"),
    ):
        (root / "index.json").write_text(text)
        with refuses(f"{root}/index.json: got {got}", DataRefused):
            lz.list_checkpoints()


def test_pull_from_a_server_into_the_cache(folder, cache, server):
    path = hub.pull(server.url + "/")
    digest = sha256(folder / MANIFEST)
    assert path == cache / digest
    assert server.asked == [f"/a/{name}" for name in (MANIFEST, *FILES)]
    assert all((path / name).read_bytes() == (folder / name).read_bytes() for name in (*FILES, MANIFEST))
    server.asked.clear()
    assert hub.pull(server.url) == path
    assert server.asked == ["/a/manifest.json"], "the rest is there"
    (path / WEIGHTS).write_bytes(b"altered")
    assert hub.pull(server.url) == path
    assert sha256(path / WEIGHTS) == sha256(folder / WEIGHTS)
    assert [p.name for p in cache.iterdir()] == [digest]


def test_published_name_from_a_server_then_offline(folder, root, server, monkeypatch):
    digest = sha256(folder / MANIFEST)
    write_index(
        root, a={"manifest_sha256": digest, "sources": ["absent", server.url]}, b={"manifest_sha256": "1" * 64, "sources": [server.url]}
    )
    path = hub.pull("a")
    monkeypatch.setenv("LAYERZOO_OFFLINE", "1")
    monkeypatch.setattr(socket, "socket", None)
    monkeypatch.setattr(socket, "getaddrinfo", None)
    assert hub.pull("a") == path
    assert lz.load("a")
    message = f"{server.url}: got LAYERZOO_OFFLINE=1, expected a connection. Unset it, or give a folder or a name once pulled."
    with refuses(message, DataRefused):
        hub.pull(server.url)
    with refuses(f"checkpoint b: got {server.url} ({message})", DataRefused):
        hub.pull("b")


def test_hugging_face(folder, cache, root, monkeypatch):
    asked, large = [], {}

    def snapshot(repo, **options):
        asked.append((repo, *options.values()))
        return str(folder)

    def about(hub, repo, revision, files_metadata):
        assert files_metadata
        if repo == "org/absent":
            raise FileNotFoundError("no such repository")
        sizes = {name: (folder / name).stat().st_size for name in (*FILES, MANIFEST)} | large
        return huggingface_hub.hf_api.ModelInfo(id=repo, siblings=[{"rfilename": name, "size": size} for name, size in sizes.items()])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", about)
    assert hub.pull("hf://org/repo") == folder
    hub.pull("hf://org/repo@v1")
    with monkeypatch.context() as patch:
        patch.setenv("LAYERZOO_OFFLINE", "1")
        hub.pull("hf://org/repo")
    four = [*FILES, MANIFEST]
    assert asked == [
        ("org/repo", wanted, revision, offline) for revision, offline, wanted in (
            (None, False, [MANIFEST]), (None, False, four), ("v1", False, [MANIFEST]), ("v1", False, four), (None, True, four))]
    with refuses(f"hf://org/absent: got no such repository, expected a repository that can be read. {CHECK}", DataRefused):
        hub.pull("hf://org/absent")
    asked.clear()
    stated = (folder / WEIGHTS).stat().st_size
    for large, name, got, most in (
        ({WEIGHTS: stated + 1}, WEIGHTS, f"{stated + 1} bytes", stated), ({MANIFEST: 2**23}, MANIFEST, f"{2**23} bytes", 2**22),
        ({WEIGHTS: None}, WEIGHTS, "no such file", stated),
    ):
        with refuses(f"hf://org/repo/{name}: got {got}, expected a file of at most {most} bytes. {CHECK}", DataRefused):
            hub.pull("hf://org/repo")
    assert [wanted for _, wanted, *_ in asked] == [[MANIFEST]] * 2, "no weights were asked for"
    large = {}
    write_index(root, a={"manifest_sha256": "0" * 64, "sources": ["hf://org/repo"]})
    with refuses(f"checkpoint a: got hf://org/repo ({folder}: got a manifest with SHA-256", DataRefused):
        hub.pull("a")
