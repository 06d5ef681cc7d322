"""Kill a save, an overwrite and a publication at every call; print how many deaths each survived. Run as a script, for it forks."""

import json
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from inject import dies_at

from layerzoo import hub
from layerzoo.checkpoint import save_checkpoint, verify_checkpoint
from layerzoo.models import create_model

OPTIONS = {"classes": [*"abcdefghij"], "mean": [0.5] * 3, "std": [0.25] * 3, "metrics": {}}


def old_or_new(folder: Path, old: dict | None, new: dict) -> str:
    """Which of the two stands there complete: in place, or under the hidden name that the refusal gives."""
    try:
        found = verify_checkpoint(folder)
    except ValueError as refusal:
        assert "got no folder" in str(refusal), refusal
        if old is None:
            return "none"
        hidden = str(refusal).split("The previous one is ")[1].removesuffix(": rename it back.")
        assert verify_checkpoint(hidden) == old
        return "old, hidden"
    assert found in (old, new)
    return "old" if found == old else "new"


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
        died = dies_at(k, partial(save_checkpoint, folder, models[1], **OPTIONS, overwrite=overwrite))
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
        died = dies_at(k, partial(hub.publish, source, "second", root))
        names = sorted(hub._read_index(root))
        assert names in (["first"], ["first", "second"])
        for name in names:
            verify_checkpoint(root / name)
        ends[len(names)] = ends.get(len(names), 0) + 1
        hub.publish(source, "second", root)
        assert {p.name for p in root.iterdir() if p.is_dir()} == {"first", "second"}, "litter"
    return ends


if __name__ == "__main__":
    torch.set_num_threads(1)
    models = [create_model("hybrid_nano", num_classes=10, img_size=32, options={"dims": [8, 16], "depths": [1, 1]}) for _ in range(2)]
    with tempfile.TemporaryDirectory(dir=sys.argv[1]) as folder:
        work = Path(folder)
        new, over, published = save(work / "a", models, False), save(work / "b", models, True), publish(work / "c", models)
    print(json.dumps({"new": new, "overwrite": over, "publish": published}))
