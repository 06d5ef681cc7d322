"""Pickles, archives, devices and links where a checkpoint is expected: refused with exit code 77 and unopened, whatever their names say."""

import gzip
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from pathlib import Path

import numpy
import pytest
import torch
from forge import OPTIONS, create, forge, refuses
from server import serve

import layerzoo as lz
from layerzoo import cli, hub
from layerzoo.checkpoint import CARD, CONFIG, MANIFEST, WEIGHTS, load_checkpoint, save_checkpoint, verify_checkpoint
from layerzoo.errors import DataRefused, SecurityRefused
from layerzoo.foreign import HEAD, check_beginning

PLAIN = "expected the folder of a checkpoint, in plain files, its weights as safetensors."
CONVERT = (
    f"{PLAIN} It was not opened. If you trust it, convert it in a script of your own: torch.load(PATH, weights_only=True), "
    "model.load_state_dict(...), layerzoo.checkpoint.save_checkpoint(FOLDER, model, ...).")


class Payload:
    """Unpickled, it leaves a mark; nothing worse."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return open, (self.mark, "w")


def pickled(mark, protocol):
    import pickle

    return pickle.dumps(Payload(mark), protocol)


def saved(value, write):
    file = io.BytesIO()
    write(value, file)
    return file.getvalue()


def zipped(name, data):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, data)
    return file.getvalue()


def tarred(name, data, mode="w"):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return file.getvalue()


def payloads(mark):
    """Bytes that unpickle, unpack or run to a mark, by kind."""
    data = {f"pickle{protocol}": pickled(mark, protocol) for protocol in range(6)}
    one, script = data["pickle2"], f"#!/bin/sh\ntouch {mark}\n".encode()
    return data | {
        "torch": saved(Payload(mark), torch.save), "numpy": saved(numpy.array([Payload(mark)], dtype=object), lambda v, f: numpy.save(f, v)),
        "zip": zipped("archive/data.pkl", one), "empty zip": zipped("a", b"")[-22:], "tar": tarred("../../model.safetensors", one),
        "tgz": tarred("/etc/x", one, "w:gz"), "bz2": tarred("x", one, "w:bz2"), "xz": tarred("x", one, "w:xz"), "gzip": gzip.compress(one),
        "7z": b"7z\xbc\xaf\x27\x1c\0\x04" + one, "rar": b"Rar!\x1a\x07\x01\0" + one, "zstd": b"\x28\xb5\x2f\xfd" + one,
        "hdf5": b"\x89HDF\r\n\x1a\n" + one,
        "elf": b"\x7fELF\x02\x01\x01\0" + one, "script": script}


NAMES = {
    "pickle0": "x.pkl", "pickle1": "x.pickle", "pickle2": "x.PT", "pickle3": "x.pth", "pickle4": "x.ckpt", "pickle5": "x.bin", "torch": "last.ckpt",
    "numpy": "x.npy", "zip": "x.zip", "empty zip": "x.npz", "tar": "x.tar", "tgz": "x.tar.gz", "7z": "x.7z", "gzip": "model.safetensors.gz"}

WATCH = textwrap.dedent("""
    import sys
    import layerzoo as lz
    from layerzoo import cli, foreign
    here, paths = {here!r}, {paths!r}
    def attempt(path):
        codes = [cli.main(["predict", "a.png", "--checkpoint", path])]
        try:
            lz.load(path)
        except ValueError as error:
            codes.append(error.exit_code)
        return codes
    attempt("x.pt")  # what refusing needs is imported
    watched = ("import", "exec", "compile", "os.system", "subprocess.Popen", "socket.connect", "pickle.find_class", "open")
    seen, sizes, read = [], [], foreign.check_beginning
    foreign.check_beginning = lambda where, head: (sizes.append(len(head)), read(where, head))
    sys.addaudithook(lambda event, args: seen.append((event, str(args[0]))) if event in watched else None)
    for path in paths:
        seen.clear()
        codes = attempt(path)
        opened = [name for event, name in seen if event == "open" and name.startswith(here)]
        bad = [(event, name) for event, name in seen if event != "open"]
        print(codes, len(set(opened)), max(sizes, default=0), bad)
""")


@pytest.mark.slow
def test_nothing_of_a_corpus_is_opened(tmp_path):
    """By its own name, as x.safetensors and as the weights of a folder: 77 each time, from the command line and from `load`; an audit hook
    sees no code run, nothing imported or unpickled, and of each file no more than its first bytes read."""
    mark, paths = tmp_path / "mark", []
    for kind, data in payloads(mark).items():
        for name in (NAMES.get(kind), f"{kind}.safetensors"):
            if name:
                paths.append(tmp_path / kind / name)
                paths[-1].parent.mkdir(exist_ok=True)
                paths[-1].write_bytes(data)
    folder = save_checkpoint(tmp_path / "good", create(), **OPTIONS)
    for kind, data in payloads(mark).items():
        paths.append(tmp_path / f"folder {kind}")
        paths[-1].mkdir()
        for name in (MANIFEST, CONFIG, CARD):
            (paths[-1] / name).write_bytes((folder / name).read_bytes())
        forge(paths[-1], WEIGHTS, data)
    code = WATCH.format(here=str(tmp_path), paths=[*map(str, paths)])
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False, capture_output=True, text=True, timeout=120)
    lines = done.stdout.splitlines()
    results = [line for line in lines if line.startswith("[")]
    assert len(paths) >= 50 and len(results) == len(paths), done.stderr[-2000:]
    for path, line in zip(paths, results):
        opened = 4 if path.name.startswith("folder ") else 1
        codes, most, read, bad = line[:8], int(line.split()[2]), int(line.split()[3]), line.split(maxsplit=4)[4]
        assert codes == "[77, 77]" and most <= opened and read <= HEAD and bad == "[]", (path, line)
    assert not mark.exists()


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("good") / "a", create(), **OPTIONS)


@pytest.fixture
def folder(good, tmp_path):
    return Path(shutil.copytree(good, tmp_path / "a"))


def refuses_77(message, call, *args):
    with refuses(message, SecurityRefused) as caught:
        call(*args)
    assert caught.value.exit_code == 77


def test_the_message_says_how_to_convert(tmp_path, capsys):
    path = tmp_path / "x.pt"
    path.write_bytes(b"\x80\x02.")
    message = f"{path}: got a .pt file, {CONVERT}"
    for call in (lz.load, load_checkpoint, verify_checkpoint):
        refuses_77(message, call, path)
    assert cli.main(["predict", "a.png", "--checkpoint", str(path)]) == 77
    assert capsys.readouterr().err == f"{message}\n"
    for name in ("x.pt", "https://example.org/a/x.ckpt", "https://example.org/x.bin?download=true", "http://127.0.0.1/x.zip/"):
        refuses_77(f"{name.partition('?')[0]}: got a ", hub.pull, name)  # is not even looked for
    path.rename(path := tmp_path / "x.safetensors")
    refuses_77(f"{path}: got a file that begins with b'\\x80\\x02.', like a pickle or an archive, {CONVERT}", lz.load, path)


def test_a_single_file_is_no_checkpoint(folder):
    for name in (WEIGHTS, MANIFEST):
        message = f"{folder / name}: got a file, expected the folder of a checkpoint. Give the folder it lies in, if it is of one."
        with refuses(message, DataRefused):
            lz.load(folder / name)


@pytest.mark.parametrize("kind", payloads("mark"))
def test_pickles_and_archives_as_weights(folder, kind):
    forge(folder, WEIGHTS, payloads(folder.parent / "mark")[kind])
    refuses_77(f"{folder / WEIGHTS}: got a file that begins with b", load_checkpoint, folder)
    with serve(folder) as server:
        refuses_77(f"{server.url}/{WEIGHTS}: got a file that begins with b", hub.pull, server.url)
    assert not (folder.parent / "mark").exists()


def test_headers_of_all_lengths_are_no_pickles():
    """Among them those whose length begins like a pickle, a zip file, an executable."""
    for length in (*range(70_000), *(int.from_bytes(magic, "little") for magic in (b"PK\3\4", b"BZh9", b"\x28\xb5\x2f\xfd", b"MZ"))):
        check_beginning("model.safetensors", length.to_bytes(8, "little") + b'{"a":{"')


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, MANIFEST])
def test_links_devices_and_pipes(folder, tmp_path, monkeypatch, name):
    monkeypatch.chdir(folder)  # a socket's path is short
    path, outside = folder / name, tmp_path / "outside"
    path.rename(outside)
    for target in (outside, "../outside", "/dev/zero", "/dev/stdin", "link", "/nowhere"):
        path.symlink_to(target)
        (folder / "link").symlink_to(outside)
        refuses_77(f"{path}: got a link to /", load_checkpoint, folder)
        with pytest.raises(SecurityRefused, match=f"{re.escape(PLAIN)} Put the file itself there.$"):
            verify_checkpoint(folder)
        path.unlink()
        (folder / "link").unlink()
    os.mkfifo(path)
    refuses_77(f"{path}: got no plain file, {PLAIN} It was not opened. Put a file there.", load_checkpoint, folder)
    refuses_77(f"{path}: got no plain file", lz.load, path)
    path.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        refuses_77(f"{path}: got no plain file", load_checkpoint, folder)
    path.unlink()
    path.mkdir()
    refuses_77(f"{path}: got no plain file", load_checkpoint, folder)
    path.rmdir()
    outside.rename(folder / "data")
    path.symlink_to("data")
    load_checkpoint(folder)  # a link within the folder


def test_links_of_the_cache_of_hugging_face(folder, tmp_path):
    """Its snapshots are folders of links into blobs beside them; no other folder has that right."""
    snapshot, blobs = tmp_path / "repo" / "snapshots" / "0a1b", tmp_path / "repo" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in folder.iterdir():
        path.rename(blobs / path.name)
        (snapshot / path.name).symlink_to(blobs / path.name)
    load_checkpoint(snapshot)
    (tmp_path / "linked").symlink_to(snapshot)
    load_checkpoint(tmp_path / "linked")
    snapshot.rename(tmp_path / "repo" / "0a1b")
    refuses_77(f"{tmp_path}/repo/0a1b/{MANIFEST}: got a link to /", load_checkpoint, tmp_path / "repo" / "0a1b")
