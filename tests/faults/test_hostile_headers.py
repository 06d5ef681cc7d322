"""Headers and JSON made to be read for ever, to fill the memory or to be read in two ways: refused, in little time and memory."""

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from forge import OPTIONS, create, forge, refuses

from layerzoo.checkpoint import CONFIG, MANIFEST, WEIGHTS, from_json, load_checkpoint, save_checkpoint
from layerzoo.errors import DataRefused

MILLIONS = 4 * 2**20  # bytes, the most that a manifest may have


def header(text, body=b""):
    text = text if isinstance(text, bytes) else json.dumps(text).encode()
    return len(text).to_bytes(8, "little") + text + body


def tensor(shape, begin, end):
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


ONE = json.dumps(tensor([1], 0, 4)).encode()
HEADERS = {
    "2^60": (2**60).to_bytes(8, "little") + b"{}", "2^64": b"\xff" * 8 + b"{}", "beyond its end": (100).to_bytes(8, "little") + b"{}",
    "overlap": header({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, bytes(12)), "backward": header({"a": tensor([1], 4, 0)}, bytes(4)),
    "hole": header({"a": tensor([1], 0, 4), "b": tensor([1], 8, 12)}, bytes(12)), "trailing": header({"a": tensor([1], 0, 4)}, bytes(8)),
    "twice": header(b'{"a":' + ONE + b',"a":' + ONE + b"}", bytes(4)), "shape that lies": header({"a": tensor([3], 0, 8)}, bytes(8)),
    "10^9 values": header({"a": tensor([10**9], 0, 4)}, bytes(4)), "2^80 values": header({"a": tensor([2**40] * 2, 0, 4)}, bytes(4)),
    "huge int": header(b'{"a":{"dtype":"F32","shape":[' + b"9" * 400 + b'],"data_offsets":[0,4]}}', bytes(4)),
    "minus": header({"a": tensor([-1], 0, 4)}, bytes(4)),
    "no tensor": header({}), "no name": header({"": tensor([1], 0, 4)}, bytes(4)), "a path": header({"../../x": tensor([1], 0, 4)}, bytes(4))}
JSON = {
    "65 deep": b'{"a":' * 65 + b"1" + b"}" * 65, "900 deep": b'{"a":' * 900 + b"1" + b"}" * 900, "twice": b'{"format":1,"format":1}',
    "nested twice": b'{"a":{"b":1,"b":2}}'}


def large_headers():
    return {
        "int of 10^6 digits": header(b'{"a":' + b"9" * 10**6 + b"}"), "deep": header(b'{"a":' + b"[" * 10**6),
        "10^6 tensors": header({str(i): tensor([0], 0, 0) for i in range(10**6)}), "much metadata": header({"__metadata__": {"a": "x" * 10**7}}),
        "4 MB of tensors": header({str(i): tensor([0], 0, 0) for i in range(60_000)})}


def large_json():
    return {
        "lists": b'{"a":[' + b"[]," * (MILLIONS // 3) + b"[]]}", "dicts": b'{"a":[' + b'{"":[0]},' * (MILLIONS // 9) + b"0]}",
        "numbers": b'{"a":[' + b"0," * (MILLIONS // 2) + b"0]}", "keys": b"{" + b",".join(b'"%d":0' % i for i in range(MILLIONS // 11)) + b"}",
        "deep": b'{"a":' * (MILLIONS // 6), "900 deep, wide": b'{"a":' + b"[" * 900 + b"0," * 260_000 + b"0" + b"]" * 900 + b"}",
        "text": b'{"a":"' + b"\\u0000" * (MILLIONS // 6) + b'"}', "digits": b'{"a":' + b"9" * (MILLIONS - 6) + b"}",
        "many twice": b"{" + b",".join(b'"%d":0' % (i // 2) for i in range(100_000)) + b"}"}


CHILD = textwrap.dedent("""
    import resource, sys, time
    from pathlib import Path
    from layerzoo.checkpoint import load_checkpoint
    good, *folders = sys.argv[1:]
    load_checkpoint(good)
    for folder in folders:
        before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        try:
            load_checkpoint(folder)
            code = 0
        except ValueError as error:
            code = error.exit_code
        size = max(path.stat().st_size for path in Path(folder).iterdir())
        most = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 - 2 * size
        print(code, time.process_time() - begun, most, sep="\\t")
""")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("good") / "a", create(), **OPTIONS)


@pytest.fixture
def folder(good, tmp_path):
    return Path(shutil.copytree(good, tmp_path / "a"))


@pytest.mark.slow
def test_what_is_hostile_costs_little(folder, tmp_path):
    """Each in its turn in a process that has loaded a good one: refused within a second of the processor and 200 MB beyond the file's own."""
    everything = JSON | large_json()
    cases = {f"header, {name}": (WEIGHTS, data) for name, data in (HEADERS | large_headers()).items()} | {
        f"{file}, {name}": (file, data) for file in (CONFIG, MANIFEST) for name, data in everything.items() if file == MANIFEST or len(data) < 2**20}
    folders = []
    for i, (name, data) in enumerate(cases.values()):
        folders.append(tmp_path / f"hostile {i}")
        folders[-1].mkdir()
        for path in folder.iterdir():
            (folders[-1] / path.name).write_bytes(path.read_bytes())
        if name == MANIFEST:
            (folders[-1] / name).write_bytes(data)
        else:
            forge(folders[-1], name, data)
    done = subprocess.run([sys.executable, "-c", CHILD, folder, *folders], check=True, capture_output=True, text=True, timeout=300)
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert len(lines) == len(cases) >= 38
    bad = {name: line for name, line in zip(cases, lines) if line[0] != "65" or float(line[1]) > 1 or int(line[2]) > 200e6}
    assert bad == {}


@pytest.mark.parametrize("name", HEADERS)
def test_hostile_headers(folder, name):
    forge(folder, WEIGHTS, HEADERS[name])
    with refuses(f"{folder}/{WEIGHTS}", DataRefused):
        load_checkpoint(folder)


def test_json_without_measure():
    with refuses("x: got JSON of more than 262144 values, expected no more than that. Copy", DataRefused):
        from_json(b"[" + b"0," * 2**18 + b"0]", "x")
    for name, got in (("65 deep", "malformed JSON (65 levels)"), ("nested twice", 'the key "b" twice, expected each key once. Copy')):
        with refuses(f"x: got {got}", DataRefused):
            from_json(JSON[name], "x")
    assert from_json(b'{"a":' * 64 + b"1" + b"}" * 64, "x")


def test_the_manifest_of_many_classes_is_no_hostile_one():
    """Twenty thousand names with commas in them, as the large ImageNet has."""
    names = [f"tench {i}, Tinca tinca, (a fish), [of rivers]" for i in range(21_843)]
    assert from_json(json.dumps({"classes": names}).encode(), Path("x"))["classes"] == names
