"""What comes back after a death: `python -m layerzoo.report.bench_resume --out resume.csv`.

A small training of three epochs of eight steps dies in the step after a save and is begun again in a new process, as the documentation of each
has it. Its next step is compared, bit for bit, with that of a training that never died: weights, moments of the optimiser, randomness (the state of
the generator that drop path draws from), samples of the batch; and the weights at the end.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import tempfile
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from layerzoo.config import DataConfig, LoggingConfig, MetaConfig, ModelConfig, Recipe, TaskConfig, TrainerConfig
from layerzoo.models import create_model
from layerzoo.quiet import quiet
from layerzoo.report.measured import new_path, write_rows
from layerzoo.report.watch import PARTS, Present, Watch
from layerzoo.train.run import fit

EPOCHS, STOPS = 3, {"in an epoch": 11, "at the end of an epoch": 8}  # steps
OPTIONS = {"dim": 24, "depth": 2}


def bench_resume() -> list[dict]:
    """One row for each stop and way: `same` or `other` for each part."""
    rows = []
    for place, stop in STOPS.items():
        for name in TRAININGS:
            rows.append({"stopped": place, "saver": name} | resumed(name, stop))
            print("  ".join(f"{value:>12}" for value in rows[-1].values()), flush=True)
    return rows


def resumed(name: str, stop: int) -> dict[str, str]:
    """What of a training that dies after `stop` steps and is begun again is as it would have been."""
    with tempfile.TemporaryDirectory() as root:
        whole, first, second = (Path(root, f"{part}.jsonl") for part in ("whole", "first", "second"))
        _start(name, Path(root, "unbroken"), whole, stop, False)
        _start(name, Path(root, "broken"), first, stop, True)
        _start(name, Path(root, "broken"), second, stop, False)
        unbroken, before, after = ([json.loads(line) for line in path.read_text().splitlines()] for path in (whole, first, second))
    if before != unbroken[:stop]:
        raise ChildProcessError(f"{name}: two trainings from one seed differ before they are stopped")
    expected, found = unbroken[stop] | unbroken[-1], after[0] | after[-1]
    return {part: "same" if found[part] == expected[part] else "other" for part in PARTS}


def _start(name: str, folder: Path, out: Path, stop: int, dies: bool) -> None:
    folder.mkdir(exist_ok=True)
    process = multiprocessing.get_context("fork").Process(target=_train, args=(name, folder, out, stop, dies))
    process.start()
    process.join()
    if process.exitcode:
        raise ChildProcessError(f"{name}: exit code {process.exitcode}")


def _train(name: str, folder: Path, out: Path, stop: int, dies: bool) -> None:
    warnings.simplefilter("ignore")
    logging.disable()
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        TRAININGS[name](folder, Watch(str(out), stop if dies else 0), stop)


def _ours(folder: Path, watch: Watch, stop: int) -> None:
    """A recipe, and the same command again."""
    data = DataConfig("digits", img_size=8, batch_size=16, eval_batch_size=100, train_fraction=0.1)
    Present.given = watch.out, watch.stop
    trainer = TrainerConfig(
        max_epochs=EPOCHS, accelerator="cpu", save_minutes=1e-6 if stop % 8 else 10, callbacks=[{"class_path": f"{Present.__module__}.Present"}])
    model = ModelConfig("vit_tiny", drop_path=0.5, options=OPTIONS)
    recipe = Recipe(MetaConfig("toy"), model, data, TaskConfig(), trainer, LoggingConfig(wandb="disabled"), runs=str(folder))
    fit(recipe, recipe_name="toy")


class _Task(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = _model()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters())


def _lightning(folder: Path, watch: Watch, stop: int) -> None:
    """ModelCheckpoint, every so many steps or every epoch, and Trainer.fit(ckpt_path=...)."""
    pl.seed_everything(0, verbose=False)
    keeper = ModelCheckpoint(folder, every_n_train_steps=stop if stop % 8 else None)
    found = sorted(folder.glob("*.ckpt"))
    trainer = pl.Trainer(max_epochs=EPOCHS, accelerator="cpu", logger=False, callbacks=[keeper, watch], enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(_Task(), _loader(), ckpt_path=found[-1] if found else None)


def _torch(folder: Path, watch: Watch, stop: int) -> None:
    """The tutorial of PyTorch: epoch, model and optimiser go into one file."""
    path = folder / "last.pt"

    def save(model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int, batch: int | None) -> None:
        torch.save({"epoch": epoch + (batch is None), "model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)

    def load(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        kept = torch.load(path, weights_only=True)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        return kept["epoch"]

    _loop(watch, stop, save, load if path.exists() else None)


def _timm(folder: Path, watch: Watch, stop: int) -> None:
    """CheckpointSaver and resume_checkpoint, as in timm's train.py."""
    from timm.models import resume_checkpoint
    from timm.utils import CheckpointSaver

    found = [path for pattern in ("recovery-*", "last*") for path in sorted(folder.glob(pattern))]

    def save(model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int, batch: int | None) -> None:
        saver = CheckpointSaver(model, optimizer, checkpoint_dir=str(folder), recovery_dir=str(folder))
        if batch is None:
            saver.save_checkpoint(epoch, metric=epoch)
        else:
            saver.save_recovery(epoch, batch_idx=batch)

    _loop(watch, stop, save, (lambda model, optimizer: resume_checkpoint(model, str(found[0]), optimizer, log_info=False)) if found else None)


def _loop(watch: Watch, stop: int, save: Callable, load: Callable | None) -> None:
    """A plain training, which saves after `stop` steps, or at the end of each epoch where that is one."""
    torch.manual_seed(0)
    model, loader = _model(), _loader()
    optimizer = torch.optim.AdamW(model.parameters())
    begin = load(model, optimizer) if load else 0
    watch.follow(model, lambda: optimizer)
    for epoch in range(begin, EPOCHS):
        for batch, (images, labels) in enumerate(loader):
            done = epoch * len(loader) + batch
            watch.step(done)
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()
            optimizer.step()
            if done + 1 == stop and stop % len(loader):
                save(model, optimizer, epoch, batch)
        save(model, optimizer, epoch, None)
    watch.end(model)


def _model() -> nn.Module:
    return create_model("vit_tiny", num_classes=10, img_size=8, in_chans=1, drop_path=0.5, options=OPTIONS).train()


def _loader() -> DataLoader:
    numbers = torch.arange(128)
    images = torch.randn(128, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(images, numbers % 10), batch_size=16, shuffle=True)


TRAININGS: dict[str, Callable[[Path, Watch, int], None]] = {"layerzoo": _ours, "torch.save": _torch, "Lightning": _lightning, "timm": _timm}


def main() -> None:
    """Print every row as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="a new .csv for the results")
    args = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    out = args.out and new_path(args.out)
    rows = bench_resume()
    if out:
        write_rows(rows, out)


if __name__ == "__main__":
    main()
