"""Reads an offline .wandb file: a 7-byte header, then a LevelDB log of protobuf records."""

import json
import struct
import time
from pathlib import Path

from wandb.proto import wandb_internal_pb2

BLOCK, HEADER = 32 * 1024, struct.Struct("<IHB")  # checksum, length, type
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path) -> list:
    """The records of an ended run, in order: W&B writes the last of them a moment after `finish` returns."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found = _written(path)
        if any(r.WhichOneof("record_type") == "exit" for r in found):
            return found
        time.sleep(0.02)
    raise AssertionError(f"{path} has no end")


def _written(path: Path) -> list:
    data, at, parts, found = path.read_bytes(), 7, b"", []
    assert data[:4] == b":W&B"
    while at + HEADER.size <= len(data):
        if BLOCK - at % BLOCK < HEADER.size:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = HEADER.unpack_from(data, at)
        parts += data[at + HEADER.size: at + HEADER.size + length]
        at += HEADER.size + length
        if kind in (FULL, LAST):
            found.append(wandb_internal_pb2.Record.FromString(parts))
            parts = b""
    return found


def read(path: Path) -> dict:
    """Run id, configuration, and one dict of values per history row."""
    run = {"config": {}, "history": [], "exit_code": None}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run["id"], run["group"], run["name"] = record.run.run_id, record.run.run_group, record.run.display_name
            run["config"] |= _values(record.run.config.update)
        elif kind == "config":
            run["config"] |= _values(record.config.update)
        elif kind == "history":
            run["history"].append(_values(record.history.item))
        elif kind == "exit":
            run["exit_code"] = record.exit.exit_code
    return run


def _values(items) -> dict:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
