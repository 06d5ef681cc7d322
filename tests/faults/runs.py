"""Small whole runs and what they leave."""

from pathlib import Path

import outcome
import pytorch_lightning as pl
import ranks

from layerzoo import cli
from layerzoo.train import run


class At(pl.Callback):
    """Does something at the end of a step, or in a save."""

    def __init__(self, action, step=11, save=False):
        self.action, self.step, self.save = action, step, save

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step and not self.save:
            self.action()

    def on_save_checkpoint(self, *args):
        if self.save:
            self.action()


def runner(tmp_path, monkeypatch, capsys):
    """Run the small recipe, changed or not, by the command line with callbacks; exit code and what it said on standard error."""
    def call(*callbacks, change=lambda recipe: recipe):
        monkeypatch.setattr(cli, "_start", lambda args: (change(ranks.recipe(str(tmp_path), 1)), "toy"))
        monkeypatch.setattr(run, "_callbacks", lambda recipe: [*callbacks])
        try:
            code = cli.main(["fit", "toy"])
        except SystemExit as stop:
            code = stop.code
        return code, capsys.readouterr().err
    return call


def folder(tmp_path) -> Path:
    [found] = (tmp_path / "toy").iterdir()
    return found


def left(tmp_path) -> tuple[list[dict], dict]:
    return outcome.left(folder(tmp_path))
