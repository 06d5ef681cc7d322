"""Ways to save a training and to find it again, as their documentation has it: ours and those of torch, Lightning and timm."""

from __future__ import annotations

import argparse
import tempfile
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn


def state(step: int, floats: int) -> dict:
    """A training whose every value is its step: weights, and the moment of an optimiser."""
    value = torch.full((floats // 2,), float(step))
    return {
        "epoch": step, "global_step": step, "state_dict": {"weight": value},
        "optimizer_states": [{"state": {0: {"moment": value.clone()}}, "param_groups": [{"lr": 0.1, "params": [0]}]}]}


def step_of(kept: dict) -> int:
    """The step that all weights and moments of a training are, -1 where they are not all the same."""
    values = kept["state_dict"]["weight"], kept["optimizer_states"][0]["state"][0]["moment"]
    step = values[0][0]
    return int(step) if all(bool((value == step).all()) for value in values) and step == step.round() else -1


@dataclass(frozen=True)
class Found:
    """What the next start goes on from.

    Fields:
        step: of the values, -1 for values that no save ever had.
        path: the file or folder.
    """

    step: int
    path: Path


class Saver:
    """What all have in common."""

    def turn(self, folder: Path) -> AbstractContextManager:
        """What keeps others out of the folder, if anything does."""
        return nullcontext()

    def imports(self) -> None:
        """Save once, so that a fork has all that it imports."""
        with tempfile.TemporaryDirectory() as folder:
            type(self)().save(Path(folder), state(1, 10))


class Ours(Saver):
    """`layerzoo.train.saving`: the newest folder that is whole; two are kept."""

    name = "layerzoo"

    def turn(self, folder: Path) -> AbstractContextManager:
        from layerzoo.train.folder import locked

        return locked(folder)

    def save(self, folder: Path, kept: dict) -> None:
        from layerzoo.checkpoint import vanish
        from layerzoo.train.saving import place, saved, write

        write(place(folder / "ckpt", kept["global_step"]), kept, {})
        for old in saved(folder / "ckpt")[:-2]:
            vanish(old)

    def find(self, folder: Path) -> Found:
        from layerzoo.checkpoint import sweep
        from layerzoo.train.saving import newest_whole, read

        sweep(folder / "ckpt")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = newest_whole(folder / "ckpt")
        return Found(step_of(read(path)), path)


class Torch(Saver):
    """`torch.save` to one path, `torch.load(weights_only=True)`."""

    name = "torch.save"

    def save(self, folder: Path, kept: dict) -> None:
        torch.save(kept, folder / "last.pt")

    def find(self, folder: Path) -> Found:
        return Found(step_of(torch.load(folder / "last.pt", weights_only=True)), folder / "last.pt")


class Lightning(Saver):
    """The files of Lightning's ModelCheckpoint(save_top_k=2), through its own TorchCheckpointIO; the newest is resumed from."""

    name = "Lightning"

    def save(self, folder: Path, kept: dict) -> None:
        self._io().save_checkpoint(kept, folder / f"step={kept['global_step']}.ckpt")
        for old in self._all(folder)[:-2]:
            self._io().remove_checkpoint(old)

    def find(self, folder: Path) -> Found:
        path = self._all(folder)[-1]
        return Found(step_of(self._io().load_checkpoint(path, weights_only=True)), path)

    def _io(self):
        from pytorch_lightning.plugins.io import TorchCheckpointIO

        return TorchCheckpointIO()

    def _all(self, folder: Path) -> list[Path]:
        return sorted(folder.glob("step=*.ckpt"), key=lambda path: int(path.stem.split("=")[1]))


class Timm(Saver):
    """timm's CheckpointSaver(max_history=2); `last.pth.tar` is resumed from."""

    name = "timm"

    def __init__(self):
        self.saver = None

    def save(self, folder: Path, kept: dict) -> None:
        from timm.utils import CheckpointSaver

        if self.saver is None:
            self.model, optimizer = _model(kept["state_dict"]["weight"])
            self.saver = CheckpointSaver(self.model, optimizer, checkpoint_dir=str(folder), recovery_dir=str(folder), max_history=2)
        self.saver.args = argparse.Namespace(model="", **kept.get("hyper_parameters", {}))  # where timm's own script has them
        self.model.weight.data.copy_(kept["state_dict"]["weight"])
        self.saver.optimizer.state[self.model.weight]["moment"] = kept["optimizer_states"][0]["state"][0]["moment"]
        self.saver.save_checkpoint(kept["global_step"], metric=kept["global_step"])

    def find(self, folder: Path) -> Found:
        from timm.models import load_state_dict, resume_checkpoint

        path = folder / "last.pth.tar"
        weight = load_state_dict(str(path)).pop("weight") if self.saver is None else self.model.weight.data  # of which it has to have the size
        model, optimizer = _model(weight)
        resume_checkpoint(model, str(path), optimizer, log_info=False)
        moment = optimizer.state[model.weight]["moment"]
        return Found(step_of({"state_dict": {"weight": model.weight.data}, "optimizer_states": [{"state": {0: {"moment": moment}}}]}), path)


def _model(weight: Tensor) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Module()
    model.weight = nn.Parameter(weight.clone())
    return model, torch.optim.SGD([model.weight], lr=0.1)


SAVERS = {saver.name: saver for saver in (Ours, Torch, Lightning, Timm)}
