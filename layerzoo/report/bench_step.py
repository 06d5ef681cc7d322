"""What a training step costs beyond a hand-written loop: `python -m layerzoo.report.bench_step`.

Variants alternate in shuffled rounds of one process: the loop, the loop again (the error of measurement), Lightning's
Trainer with a bare module, Classify with its metrics and metrics.jsonl, the same as a run that survives (dropout reseeded at each
batch, signals heard, training checkpoints), the same with offline W&B.
Each round gives a difference to its own loop, and the median over rounds is printed: CPU time of the training thread,
and wall time, which neighbours on the machine disturb. Calls of functions are exact.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F

from layerzoo.config import LoggingConfig, OptimizerConfig, TaskConfig
from layerzoo.tasks.classify import Classify
from layerzoo.train.callbacks import Progress
from layerzoo.train.keeping import Keeper
from layerzoo.train.loggers import MetricsFile, create_wandb
from layerzoo.train.saving import FolderCheckpointIO
from layerzoo.train.stopping import Signals

CLASSES, BATCH, WARM_UP = 10, 32, 50
LOOP = "hand-written loop"


class Feed:
    """The same batch `steps` times, with the clocks and the calls between the end of the warm-up and the last batch."""

    def __init__(self, steps: int, count_calls: bool = False):
        generator = torch.Generator().manual_seed(0)
        self.steps, self.count_calls, self.calls = steps, count_calls, 0
        x = torch.randn(BATCH, 3, 8, 8, generator=generator).to(memory_format=torch.channels_last)  # as the data pipelines give it
        self.batch = x, torch.randint(CLASSES, (BATCH,), generator=generator)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for i in range(self.steps):
            if i == WARM_UP:
                self.start = time.thread_time(), time.perf_counter()
                sys.setprofile(self._count if self.count_calls else None)
            elif i == self.steps - 1:
                sys.setprofile(None)
                self.end = time.thread_time(), time.perf_counter()
            yield self.batch

    def per_step(self) -> tuple[float, float, float]:
        """Microseconds of CPU time of this thread, microseconds of wall time, and calls of Python and C functions."""
        steps = self.steps - 1 - WARM_UP
        return *((end - start) / steps * 1e6 for start, end in zip(self.start, self.end)), self.calls / steps

    def _count(self, frame: object, event: str, argument: object) -> None:
        self.calls += event in ("call", "c_call")


class Bare(pl.LightningModule):
    """The least a Trainer can drive."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return create_sgd(self.model)


def create_toy() -> nn.Module:
    """Three linear layers of 128: a step of a few hundred microseconds."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, CLASSES))


def create_sgd(model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of every variant."""
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)


def run_loop(feed: Feed, folder: Path) -> None:
    """The reference."""
    model = create_toy()
    optimizer = create_sgd(model)
    for x, y in feed:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def run_quiet(feed: Feed, folder: Path) -> None:
    """Lightning with nothing on."""
    _trainer(folder).fit(Bare(create_toy()), feed)


class Forgetful(Classify):
    """Draws its dropout from what happens to come next, as other libraries do."""

    def reseed(self, batch_idx: int) -> None:
        pass


def run_metrics(feed: Feed, folder: Path) -> None:
    """Classify, which ends with the process that runs it."""
    _trainer(folder, logger=[MetricsFile(folder)], callbacks=[Progress(every_n_steps=50)]).fit(_task(Forgetful, feed), feed)


def run_surviving(feed: Feed, folder: Path) -> None:
    """Classify as `layerzoo fit` runs it."""
    _fit_surviving(feed, folder, [MetricsFile(folder)])


def run_logging(feed: Feed, folder: Path) -> None:
    """The same with W&B."""
    wandb = create_wandb(LoggingConfig(wandb="offline"), folder, name="bench_step", group="bench_step")
    _fit_surviving(feed, folder, [MetricsFile(folder), wandb])
    wandb.finish(0)


def _fit_surviving(feed: Feed, folder: Path, loggers: list) -> None:
    with Signals() as signals:
        keeper = Keeper(folder / "ckpt", signals, minutes=10, seconds=300)
        _trainer(
            folder, logger=loggers, callbacks=[Progress(every_n_steps=50), keeper], enable_checkpointing=True, plugins=[FolderCheckpointIO({})],
        ).fit(_task(Classify, feed), feed)


def _task(kind: type[Classify], feed: Feed) -> Classify:
    config = TaskConfig(optimizer=OptimizerConfig("sgd", lr=0.01, weight_decay=0.0))
    return kind(create_toy(), config, classes=[str(i) for i in range(CLASSES)], steps_per_epoch=len(feed), max_epochs=1)


def _trainer(folder: Path, **options: object) -> pl.Trainer:
    options = {"logger": False, "enable_checkpointing": False} | options
    return pl.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        log_every_n_steps=50, **options)


VARIANTS = {
    LOOP: run_loop, "the loop again": run_loop, "quiet Trainer": run_quiet, "Classify": run_metrics, "Classify that survives": run_surviving,
    "the same with W&B": run_logging}


def run_once(name: str, steps: int, count_calls: bool = False) -> tuple[float, float, float]:
    """What `Feed.per_step` says of one run of a variant."""
    with tempfile.TemporaryDirectory() as folder:
        feed = Feed(steps, count_calls)
        VARIANTS[name](feed, Path(folder))
    return feed.per_step()


def measure(rounds: int, steps: int) -> dict[str, list[tuple[float, float]]]:
    """Microseconds per step, of CPU time and of wall time: for each variant one entry per round.

    Args:
        rounds: times each variant runs, after one untimed round.
        steps: training steps in a run.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
    for turn in range(rounds + 1):
        for name in random.sample(list(VARIANTS), len(VARIANTS)):
            taken = run_once(name, steps)[:2]
            if turn:
                times[name].append(taken)
    return times


def main() -> None:
    """Print one line per variant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=1000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for logger in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    with contextlib.redirect_stdout(None):
        times = measure(args.rounds, args.steps)
        calls = {name: run_once(name, 250, count_calls=True)[2] for name in VARIANTS}
    print(f"{'':30}{'us/step':>9}  {'extra us [quartiles]':<24}{'ratio':>6}  {'extra us, wall':<15}{'extra calls':>12}")
    for name, taken in times.items():
        extra, wall = ([own[k] - base[k] for own, base in zip(taken, times[LOOP])] for k in (0, 1))
        low, middle, high = statistics.quantiles(extra, n=4, method="inclusive")
        ratio = statistics.median(own[0] / base[0] for own, base in zip(taken, times[LOOP]))
        spread = f"{middle:.0f} [{low:.0f}, {high:.0f}]"
        print(
            f"{name:30}{statistics.median(t[0] for t in taken):9.0f}  {spread:<24}{ratio:6.2f}  {statistics.median(wall):<15.0f}"
            f"{calls[name] - calls[LOOP]:12.0f}")


if __name__ == "__main__":
    main()
