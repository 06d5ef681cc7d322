"""Kill a save, an overwrite, a publication and a pull at every call; print how many deaths each survived. Run as a script, for it forks."""

import json
import os
import shutil
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path

import torch
from server import serve

from layerzoo import hub
from layerzoo.checkpoint import save_checkpoint, verify_checkpoint
from layerzoo.models import create_model
from layerzoo.report.calls import killed_at

OPTIONS = {"classes": [*"abcdefghij"], "mean": [0.5] * 3, "std": [0.25] * 3, "metrics": {}}


def old_or_new(folder: Path, old: dict | None, new: dict) -> str:
    """Which of the two is read: from its place, or from under the hidden name that an overwrite gave it."""
    if not folder.exists() and old is None:
        return "none"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = verify_checkpoint(folder)
    assert found in (old, new)
    assert len(told) == (not folder.exists())
    return "new" if found == new else "old" if folder.exists() else "old, hidden"


def save(work: Path, models: list, overwrite: bool) -> dict:
    """Die at each call of a save; then the next save must succeed and leave nothing but the folder."""
    old, new = (verify_checkpoint(save_checkpoint(work / "made" / str(i), model, **OPTIONS)) for i, model in enumerate(models))
    ends, k, died = {}, 0, True
    while died:
        k += 1
        folder = work / f"run{k}" / "checkpoint"
        folder.parent.mkdir()
        if overwrite:
            shutil.copytree(work / "made" / "0", folder)
        died = killed_at(k, partial(save_checkpoint, folder, models[1], **OPTIONS, overwrite=overwrite), work).killed
        end = old_or_new(folder, old if overwrite else None, new)
        assert died or end == "new"
        ends[end] = ends.get(end, 0) + 1
        save_checkpoint(folder, models[1], **OPTIONS, overwrite=True)
        assert verify_checkpoint(folder) == new
        assert [p.name for p in folder.parent.iterdir()] == ["checkpoint"], "litter"
    return ends


def publish(work: Path, models: list) -> dict:
    """Die at each call of a publication: the index is the old or the new one, and each of its names is complete."""
    source = save_checkpoint(work / "made" / "p", models[0], **OPTIONS)
    ends, k, died = {}, 0, True
    while died:
        k += 1
        root = work / f"root{k}"
        hub.publish(source, "first", root)
        died = killed_at(k, partial(hub.publish, source, "second", root), work).killed
        names = sorted(hub._read_index(root))
        assert names in (["first"], ["first", "second"])
        for name in names:
            verify_checkpoint(root / name)
        ends[len(names)] = ends.get(len(names), 0) + 1
        hub.publish(source, "second", root)
        assert {p.name for p in root.iterdir() if p.is_dir()} == {"first", "second"}, "litter"
    return ends


def pull(work: Path, models: list) -> dict:
    """Die at each call of a pull: the cache has the whole folder or none, and the next pull leaves nothing else."""
    source = save_checkpoint(work / "made" / "q", models[0], **OPTIONS)
    ends, k, died = {}, 0, True
    with serve(source) as server:
        while died:
            k += 1
            os.environ["LAYERZOO_CACHE"] = str(work / f"cache{k}")
            died = killed_at(k, partial(hub.pull, server.url), work).killed
            found = [path for path in (work / f"cache{k}").glob("checkpoints/*") if not path.name.startswith(".")]
            for path in found:
                verify_checkpoint(path)
            ends[len(found)] = ends.get(len(found), 0) + 1
            target = hub.pull(server.url)
            if not found:
                assert [*target.parent.iterdir()] == [target], "litter"
    return ends


if __name__ == "__main__":
    torch.set_num_threads(1)
    models = [create_model("hybrid_nano", num_classes=10, img_size=32, options={"dims": [8, 16], "depths": [1, 1]}) for _ in range(2)]
    with tempfile.TemporaryDirectory(dir=sys.argv[1]) as folder:
        work = Path(folder)
        ends = {"new": save(work / "a", models, False), "overwrite": save(work / "b", models, True)}
        ends |= {"publish": publish(work / "c", models), "pull": pull(work / "d", models)}
    print(json.dumps(ends))
