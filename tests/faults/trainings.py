"""Small training checkpoints, and `python trainings.py WORK`: die at each call of a save, a replacement and a deletion; print how each ended."""

import json
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch

from layerzoo.checkpoint import sweep, vanish
from layerzoo.report.calls import killed_at
from layerzoo.train.saving import newest_whole, place, read, write


def made(step: int, floats: int = 300) -> dict:
    """A checkpoint of three tensors whose values are the step."""
    value = torch.full((floats,), float(step))
    return {
        "epoch": step, "global_step": step, "state_dict": {"weight": value, "bias": value[:3].clone()},
        "optimizer_states": [{"state": {0: {"moment": value.clone(), "step": step}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]}]}


def whole_step(folder: Path) -> int:
    """The step of the newest whole one, whose values are proved to be its own; -1 for none."""
    found = newest_whole(folder)
    if found is None:
        return -1
    kept = read(found)
    step = kept["global_step"]
    assert found == place(folder, step)
    assert all(bool((value == step).all()) for value in (*kept["state_dict"].values(), kept["optimizer_states"][0]["state"][0]["moment"]))
    return step


def save(folder: Path, step: int) -> None:
    write(place(folder, step), made(step), {})


def die_everywhere(work: Path, name: str, before: list[int], action, allowed: tuple[int, ...]) -> dict:
    """Deaths by the step that was newest and whole at the next start, after which nothing but whole folders is left."""
    ends, k, died = {}, 0, True
    while died:
        k += 1
        folder = work / f"{name}{k}" / "ckpt"
        folder.parent.mkdir()
        for step in before:
            save(folder, step)
        died = killed_at(k, partial(action, folder), work).killed
        sweep(folder)
        step = whole_step(folder)
        assert step in allowed, (name, k, step)
        assert died or step == allowed[-1]
        assert all(path.name.startswith("step-") for path in folder.glob("*")), "litter"
        if before:
            assert place(folder, before[0]).exists() or name == "delete"
        ends[step] = ends.get(step, 0) + 1
    return ends


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=sys.argv[1]) as root:
        work = Path(root)
        print(json.dumps({
            "first": die_everywhere(work, "first", [], partial(save, step=1), (-1, 1)),
            "next": die_everywhere(work, "next", [1, 2], partial(save, step=3), (2, 3)),
            "again": die_everywhere(work, "again", [1, 2], partial(save, step=2), (2, 2)),
            "delete": die_everywhere(work, "delete", [1, 2, 3], lambda folder: vanish(place(folder, 1)), (3, 3))}))
