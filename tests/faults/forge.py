"""Small models, checkpoints whose manifest agrees with altered files, and refusals by the beginning of their message."""

import hashlib
import json
import re

import pytest

import layerzoo as lz
from layerzoo.checkpoint import MANIFEST, to_json

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
    manifest["sha256"] = hashlib.sha256(to_json(manifest)).hexdigest()
    (folder / MANIFEST).write_bytes(to_json(manifest))
