"""Pulls from servers that lie, fail, drip and redirect, into caches that cannot be written, by processes that die."""

import errno
import hashlib
import itertools
import os
import random
import socket
import subprocess
import sys
import time
import types

import pytest
from forge import refuses
from server import serve

import layerzoo as lz
from layerzoo import checkpoint, hub
from layerzoo.checkpoint import CONFIG, FILES, LARGEST, MANIFEST, WEIGHTS, save_checkpoint
from layerzoo.errors import DataRefused

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
def server(folder):
    with serve(folder) as handler:
        yield handler


def refuses_pull(server, cache, message):
    with refuses(message, DataRefused):
        hub.pull(server.url)
    assert not cache.exists() or not [*cache.iterdir()], "litter"


@pytest.mark.parametrize("name", FILES)
def test_server_that_lies(folder, cache, server, name):
    data = (folder / name).read_bytes()
    stated = f"expected {len(data)}, as manifest.json states. {CHECK}"
    for body, message in (
        (data[:-1], f"got {len(data) - 1} bytes, {stated}"),
        (data + b"x", f"got more than {len(data)} bytes, {stated}"),
        (b"", f"got 0 bytes, {stated}"),
    ):
        server.answers[name] = (200, {}, body)
        refuses_pull(server, cache, f"{server.url}/{name}: {message}")
    other = data[:-1] + bytes([data[-1] ^ 1])
    server.answers[name] = (200, {}, other)
    got, expected = (hashlib.sha256(d).hexdigest()[:12] for d in (other, data))
    refuses_pull(server, cache, f"{server.url}/{name}: got SHA-256 {got}..., expected {expected}..., as manifest.json states. {CHECK}")
    server.answers[name] = (200, {"Content-Length": len(data)}, data[:100])  # the connection ends early
    refuses_pull(server, cache, f"{server.url}/{name}: got ")


@pytest.mark.parametrize("status", [404, 500, 403])
def test_server_that_fails(cache, server, status):
    for name in (MANIFEST, WEIGHTS):
        server.answers[name] = (status, {}, b"")
        refuses_pull(server, cache, f"{server.url}/{name}: got HTTP Error {status}: ")
        del server.answers[name]


def test_server_that_is_not_there(cache):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/a"
    with pytest.raises(DataRefused, match=f"^{url}/manifest.json: got .*refused.*, expected a file of a checkpoint. {CHECK}"):
        hub.pull(url)


def test_manifest_without_end(cache, server, monkeypatch):
    monkeypatch.setitem(LARGEST, MANIFEST, 1000)
    server.answers[MANIFEST] = (200, {}, b"x" * 5000)
    refuses_pull(server, cache, f"{server.url}/manifest.json: got more than 1000 bytes, expected a manifest. {CHECK}")


def test_server_is_not_heard_out(server):
    """Pieces are taken as they come, so that the clock is read between them, and none far beyond the size stated."""
    server.answers[WEIGHTS] = (200, {}, b"x" * 2**24)
    assert sum(map(len, hub._download(f"{server.url}/{WEIGHTS}", 10))) <= 10 + hub._CHUNK
    server.answers[WEIGHTS], server.pause = (200, {}, b"x" * 1000), 0.02
    assert len([*hub._download(f"{server.url}/{WEIGHTS}", 1000)]) > 1


def test_hostile_manifest_from_a_server(cache, server):
    manifest = {"format": 1, "files": {"../evil": {"bytes": 1, "sha256": "0" * 64}}}
    manifest["sha256"] = hashlib.sha256(checkpoint.to_json(manifest)).hexdigest()
    server.answers[MANIFEST] = (200, {}, checkpoint.to_json(manifest))
    refuses_pull(server, cache, f"{server.url}/manifest.json: files: got ")
    assert server.asked == ["/a/manifest.json"]


def test_server_that_says_nothing(cache, monkeypatch):
    monkeypatch.setattr(hub, "_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/a"
        with refuses(f"{url}/manifest.json: got timed out, expected a file of a checkpoint. {CHECK}", DataRefused):
            hub.pull(url)


def test_server_that_drips(cache, server, monkeypatch):
    clock = itertools.count(0, 10**6)
    monkeypatch.setattr(hub, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    refuses_pull(
        server, cache, f"{server.url}/manifest.json: got less than 10000 bytes per second, expected a file of a checkpoint. {CHECK}"
    )


@pytest.mark.parametrize(
    "address",
    ["http://example.org/a", "ftp://example.org/a", "file:///etc/passwd", "https:///a", "http://127.0.0.1.example.org/a", "https://[::::]/a",
     "https://example.org/a b", "https://user:word@example.org/a"],
)
def test_only_https_is_pulled_from(cache, server, address):
    message = f"address: got {address!r}, expected https:// or hf://. Only these are pulled from, also after a redirect."
    with refuses(message):
        hub.pull(address)
    if not address.startswith("https"):
        server.answers[MANIFEST] = (302, {"Location": address}, b"")
        with pytest.raises(ValueError, match="[Rr]edirect"):
            hub.pull(server.url)


def test_redirect_keeps_its_scheme(cache, server):
    server.answers[MANIFEST] = (302, {"Location": "https://127.0.0.1/a"}, b"")
    with refuses("redirect: got 'https://127.0.0.1/a', expected an address of http. A server may not send its clients elsewhere."):
        hub.pull(server.url)


def test_cache_that_cannot_be_written(folder, cache, server, monkeypatch):
    cache.parent.write_text("a file in its place")
    do = "Free space there, or set LAYERZOO_CACHE to another folder."
    message = f"cache {cache}: got [Errno 20] Not a directory: '{cache}', expected a folder to write in. {do}"
    with refuses(message, hub.CacheRefused) as refusal:
        hub.pull(server.url)
    assert refusal.value.exit_code == 74
    cache.parent.unlink()
    path = hub.pull(server.url)

    def full(*args):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "mkdir", full)
    assert hub.pull(server.url) == path, "what is there can be read"
    (path / CONFIG).write_text("altered")
    with refuses(f"cache {cache}: got [Errno 30] Read-only file system, expected a folder to write in."):
        hub.pull(server.url)


def test_redirect_between_allowed_addresses(cache, server):
    server.answers["elsewhere"] = (302, {"Location": f"{server.url}/{MANIFEST}"}, b"")
    assert b"".join(hub._download(f"{server.url}/elsewhere", 10**6)) == b"".join(hub._download(f"{server.url}/{MANIFEST}", 10**6))


def pulls(server, count):
    code = f"from layerzoo import hub; print(hub.pull({server.url!r}))"
    return [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(count)]


def test_four_processes_at_once(folder, cache, server):
    started = pulls(server, 4)
    said = {pull.communicate(timeout=120)[0].decode().strip() for pull in started}
    assert [pull.returncode for pull in started] == [0] * 4
    assert said == {str(cache / sha256(folder / MANIFEST))}
    assert [p.name for p in cache.iterdir()] == [sha256(folder / MANIFEST)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_eight_processes_of_which_half_are_killed(folder, cache, server, seed):
    server.pause = 0.02
    draw, started = random.Random(seed), pulls(server, 8)
    for pull in started[:4]:
        time.sleep(draw.uniform(0, 0.4))
        pull.kill()
        pull.wait()  # a zombie counts as alive
    said = {pull.communicate(timeout=120)[0].decode().strip() for pull in started[4:]}
    assert [pull.wait() for pull in started[4:]] == [0] * 4
    assert said == {str(cache / sha256(folder / MANIFEST))}
    (cache / sha256(folder / MANIFEST) / CONFIG).write_text("altered")
    hub.pull(server.url)
    assert [p.name for p in cache.iterdir()] == [sha256(folder / MANIFEST)], "litter"
