"""Pulls from servers that lie, fail, drip and redirect, into caches that cannot be written, by processes that die."""

import errno
import hashlib
import os
import random
import shutil
import socket
import ssl
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from forge import refuses
from server import serve

import layerzoo as lz
from layerzoo import checkpoint, cli, download, hub
from layerzoo.checkpoint import CARD, CONFIG, FILES, LARGEST, MANIFEST, WEIGHTS, save_checkpoint
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
    monkeypatch.setattr(download, "_PAUSES", (0.0, 0.0))
    return tmp_path / "cache" / "checkpoints"


@pytest.fixture
def server(folder):
    with serve(folder) as handler:
        yield handler


def refuses_pull(server, cache, message):
    with warnings.catch_warnings(action="ignore"), refuses(message, DataRefused):
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
    refuses_pull(server, cache, f"{server.url}/{name}: got an answer that ends {len(data) - 100} bytes early, expected a file of a checkpoint.")


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
    message = f"^{url}/manifest.json: got .*refused.*, expected a file of a checkpoint. {CHECK}"
    with pytest.warns(UserWarning, match="asked for again"), pytest.raises(DataRefused, match=message):
        hub.pull(url)


def test_manifest_without_end(cache, server, monkeypatch):
    monkeypatch.setitem(LARGEST, MANIFEST, 1000)
    server.answers[MANIFEST] = (200, {}, b"x" * 5000)
    refuses_pull(server, cache, f"{server.url}/manifest.json: got more than 1000 bytes, expected a manifest. {CHECK}")


def read(url, largest=10**6):
    return download.download(url, largest, "what is small", b"".join)


def test_server_is_not_heard_out(server):
    """An answer that announces more than may come is not read; one without an end, little more than that."""
    server.answers[WEIGHTS] = (200, {}, b"x" * 2**24)
    taken = []
    endless = {"Transfer-Encoding": "identity", "Content-Length": ""}
    for headers, most in (({}, 0), ({"Content-Length": 2**62}, 0), (endless, 10 + download._CHUNK)):
        server.answers[WEIGHTS] = (200, headers, b"x" * 2**24)
        taken.clear()
        message = f"{server.url}/{WEIGHTS}: got more than 10 bytes, expected what is small. {CHECK}"
        with refuses(message, DataRefused):
            download.download(f"{server.url}/{WEIGHTS}", 10, "what is small", lambda pieces: taken.extend(map(len, pieces)))
        assert sum(taken) <= most
    server.answers[WEIGHTS], server.pause = (200, {}, b"x" * 1000), 0.02
    download.download(f"{server.url}/{WEIGHTS}", 1000, "a file", lambda pieces: taken.extend(map(len, pieces)))
    assert len(taken) > 2, "pieces are taken as they come"


def test_hostile_manifest_from_a_server(cache, server):
    manifest = {"format": 1, "files": {"../evil": {"bytes": 1, "sha256": "0" * 64}}}
    manifest["sha256"] = hashlib.sha256(checkpoint.to_json(manifest)).hexdigest()
    server.answers[MANIFEST] = (200, {}, checkpoint.to_json(manifest))
    refuses_pull(server, cache, f"{server.url}/manifest.json: files: got ")
    assert server.asked == ["/a/manifest.json"]


def test_server_that_says_nothing(cache, monkeypatch):
    monkeypatch.setattr(download, "_TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/a"
        with pytest.warns(UserWarning, match="asked for again"), refuses(
            f"{url}/manifest.json: got timed out, expected a file of a checkpoint. {CHECK}", DataRefused
        ):
            hub.pull(url)


ANSWER = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize("scheme, start", [
    ("http", b""), ("http", ANSWER + b"X: "), ("http", ANSWER + b"\r\n"), ("http", ANSWER + b"Content-Length: 9999\r\n\r\n"),
    ("https", b"\x16\x03\x03\x40\0")], ids=["first line", "header", "body", "body of a stated length", "handshake"])
def test_server_that_drips(cache, monkeypatch, scheme, start):
    """Wherever it does: it is left at the deadline, and not asked again."""
    monkeypatch.setattr(download, "_TIMEOUT", 0.2)
    monkeypatch.setattr(download, "_SLOWEST", 10**9)
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as thread:
        url = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}/a"

        def drip():
            client = listener.accept()[0]
            with client, suppress(OSError):
                client.sendall(start)
                while True:
                    client.sendall(b"h")
                    time.sleep(0.02)

        done = thread.submit(drip)
        with warnings.catch_warnings(action="error"), refuses(
            f"{url}/manifest.json: got less than 1000000000 bytes per second, expected a file of a checkpoint. {CHECK}", DataRefused
        ):
            hub.pull(url)
        done.result(5)
    assert not cache.exists()


def test_faults_of_the_transport_are_retried_and_told_once(folder, cache, server):
    """500, then a cut: the third answer is taken. What is no fault of the transport is asked for once."""
    cut = (200, {"Content-Length": (folder / WEIGHTS).stat().st_size}, b"")
    server.answers = {WEIGHTS: [(500, {}, b""), cut], MANIFEST: [(503, {}, b"")]}
    with pytest.warns(UserWarning) as told:
        path = hub.pull(server.url)
    assert [str(w.message).partition(", expected")[0] for w in told] == [
        f"{server.url}/{name}: got HTTP Error {error}" for name, error in
        ((MANIFEST, "503: Service Unavailable"), (WEIGHTS, "500: Internal Server Error"))]
    assert str(told[0].message).endswith(f"{CHECK} It is asked for again, 2 times at most.")
    assert [name.rsplit("/", 1)[1] for name in server.asked] == [MANIFEST] * 2 + [WEIGHTS] * 3 + [CONFIG, CARD]
    assert all(sha256(path / name) == sha256(folder / name) for name in FILES)
    for answers, count in ((500, 3), (429, 3), (404, 1), (301, 1)):
        server.asked.clear()
        server.answers = {MANIFEST: (answers, {}, b"")}
        with warnings.catch_warnings(action="ignore"), pytest.raises(DataRefused, match=f"HTTP Error {answers}"):
            hub.pull(server.url)
        assert len(server.asked) == count


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate")
def test_https_is_verified(folder, cache, server, tmp_path, monkeypatch):
    """A certificate that nobody vouches for is refused at once; one that is trusted is pulled from."""
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=localhost"]
    subprocess.run([*made, "-addext", "subjectAltName=DNS:localhost"], cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with serve(folder, context) as secure, warnings.catch_warnings(action="error"):
        assert secure.url.startswith("https://localhost:")
        with pytest.raises(DataRefused, match="manifest.json: got .*CERTIFICATE_VERIFY_FAILED"):
            hub.pull(secure.url)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        assert hub.pull(secure.url) == cache / sha256(folder / MANIFEST)


def test_names_that_no_host_has(cache):
    with pytest.raises(DataRefused, match="^https://a..b/x/manifest.json: got .*label"):
        hub.pull("https://a..b/x")


def test_redirect_loop(cache, server):
    server.answers[MANIFEST] = (302, {"Location": f"{server.url}/{MANIFEST}"}, b"")
    refuses_pull(server, cache, f"{server.url}/manifest.json: got HTTP Error 302: The HTTP server returned a redirect error that would lead")


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
        with pytest.raises(DataRefused, match="[Rr]edirect"):
            hub.pull(server.url)


def test_redirect_keeps_its_scheme(cache, server):
    server.answers[MANIFEST] = (302, {"Location": "https://127.0.0.1/a"}, b"")
    with refuses("redirect: got 'https://127.0.0.1/a', expected an address of http. A server may not send its clients elsewhere.", DataRefused):
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
    assert read(f"{server.url}/elsewhere") == read(f"{server.url}/{MANIFEST}")


LOCKS = {
    "works": "", "is said to hold and does not": "import fcntl; fcntl.lockf = lambda *a: None",
    "is refused": "import errno, fcntl\ndef lockf(*a): raise OSError(errno.ENOLCK, 'no locks')\nfcntl.lockf = lockf"}


def pulls(server, count, lock="works"):
    code = f"{LOCKS[lock]}\nfrom layerzoo import hub; print(hub.pull({server.url!r}))"
    return [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(count)]


def said(started):
    found = {pull.communicate(timeout=120)[0].decode().strip() for pull in started}
    assert [pull.returncode for pull in started] == [0] * len(started)
    return found


def test_four_processes_at_once_pull_once(folder, cache, server):
    assert said(pulls(server, 4)) == {str(cache / sha256(folder / MANIFEST))}
    assert [p.name for p in cache.iterdir()] == [sha256(folder / MANIFEST)]
    assert server.asked.count(f"/a/{WEIGHTS}") == 1


@pytest.mark.slow
@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize("seed", range(10))
def test_eight_processes_of_which_half_are_killed(folder, cache, server, seed, lock):
    """The others get the right bytes, and the next pull leaves one folder; without a lock, there are only more downloads."""
    server.pause = 0.02
    draw, started = random.Random(seed), pulls(server, 8, lock)
    for pull in started[:4]:
        time.sleep(draw.uniform(0, 0.4))
        pull.kill()
        pull.wait()  # a zombie counts as alive
    target = cache / sha256(folder / MANIFEST)
    assert said(started[4:]) == {str(target)}
    assert all(sha256(target / name) == sha256(folder / name) for name in FILES)
    assert server.asked.count(f"/a/{WEIGHTS}") <= (5 if lock == "works" else 8)
    (target / CONFIG).write_text("altered")
    hub.pull(server.url)
    assert [p.name for p in cache.iterdir()] == [target.name], "litter"
    assert sorted(p.name for p in cache.parent.iterdir()) == [".pulls", "checkpoints"]


def test_another_pull_that_lasts(folder, cache, server, monkeypatch):
    """One that is stopped is waited for in vain, and then no longer."""
    monkeypatch.setattr(hub, "_PATIENCE", 0.1)
    target = cache / sha256(folder / MANIFEST)
    code = "import fcntl, sys; f = open(sys.argv[1], 'ab'); fcntl.lockf(f, fcntl.LOCK_EX, 1, int(sys.argv[2][:15], 16)); print(flush=True); input()"
    cache.parent.mkdir()
    other = subprocess.Popen([sys.executable, "-c", code, cache.parent / ".pulls", target.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    other.stdout.readline()
    with pytest.warns(UserWarning, match=f"^{target}: another process pulls it for more than 0 s; it is pulled here as well.$"):
        assert hub.pull(server.url) == target
    other.communicate(b"\n")


def test_exit_codes_of_the_command_line(folder, cache, server, capsys):
    other = (folder / WEIGHTS).read_bytes()[:-1] + b"x"
    for answer, code, said in (
        ((200, {}, other), 65, "got SHA-256"), ((302, {"Location": "https://127.0.0.1/a"}, b""), 65, "redirect: got"),
        ((302, {"Location": "ftp://example.org/a"}, b""), 65, "address: got"), ((404, {}, b""), 65, "got HTTP Error 404"),
        ((200, {"Content-Length": 2**62}, b""), 65, "got more than"), ((200, {}, b"\x80\x04."), 77, "got a file that begins with b'\\x80\\x04")):
        server.answers[WEIGHTS] = answer
        assert cli.main(["predict", "x.png", "--checkpoint", server.url]) == code
        assert said in capsys.readouterr().err and not [*cache.iterdir()]


def test_cached_folder_without_its_manifest_is_pulled_again(cache, server):
    path = hub.pull(server.url)
    (path / MANIFEST).unlink()
    assert hub.pull(server.url) == path
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("nowhere")
    assert hub.pull(server.url) == path and not path.is_symlink()
