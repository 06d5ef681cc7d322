"""`python ranks.py FAULT RANK STEP FOLDER DEVICES`: a small run in which one rank meets a fault. Its exit code is that of the command line.

Faults: killed, raises, stuck, stopped, nan at the start of a step; SIGNAL:PHASE, a signal to itself in a step, in val, in save, in warm-up,
or while it waits for data; none.
"""

import os
import signal
import sys
import threading
import time

import pytorch_lightning as pl
import torch

from layerzoo import cli
from layerzoo.config import DataConfig, LoggingConfig, MetaConfig, ModelConfig, Recipe, TaskConfig, TrainerConfig
from layerzoo.data.memory import MemoryLoader
from layerzoo.train import run


class Fault(pl.Callback):
    """Of one rank, at a step: eight are an epoch, after which four batches are validated."""

    def __init__(self, fault, rank, step):
        self.fault, self.rank, self.step = fault, rank, step
        self.number, _, self.phase = fault.partition(":")

    def on_train_batch_start(self, trainer, task, batch, batch_idx):
        if not self.is_here(trainer):
            return
        print(f"rank {self.rank} now" if self.phase else f"rank {self.rank} now, asked at {time.time()}", flush=True)
        if self.fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "stuck":
            time.sleep(10_000)
        if self.fault == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        if self.fault == "raises":
            raise RuntimeError("no such luck")
        if self.fault == "nan":
            batch[0][0] = float("nan")
        if self.phase == "data":  # the next batch takes a second
            pixels, ask = MemoryLoader.pixels, threading.Timer(0.5, self.ask)
            MemoryLoader.pixels = lambda *args: (time.sleep(1) or part for part in pixels(*args))
            ask.start()
        self.ask("step")

    def on_fit_start(self, trainer, task):
        if trainer.global_rank == self.rank:
            self.ask("warm-up")

    def on_validation_batch_end(self, trainer, task, outputs, batch, batch_idx):
        if self.is_here(trainer) and batch_idx == 1:
            self.ask("val")

    def on_save_checkpoint(self, trainer, task, checkpoint):
        if self.is_here(trainer):
            self.ask("save")

    def is_here(self, trainer):
        return (trainer.global_rank, trainer.global_step) == (self.rank, self.step)

    def ask(self, phase="data"):
        if phase == self.phase:
            print(f"asked at {time.time()}", flush=True)
            os.kill(os.getpid(), getattr(signal, self.number))


def recipe(folder, devices):
    data = DataConfig("digits", img_size=8, batch_size=16, eval_batch_size=100, train_fraction=0.1)
    trainer = TrainerConfig(
        max_epochs=3, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", log_every_n_steps=4, rank_timeout=30)
    return Recipe(MetaConfig("toy"), ModelConfig("vit_tiny", options={"depth": 1}), data, TaskConfig(), trainer, LoggingConfig(wandb="disabled"), runs=folder)


if __name__ == "__main__":
    fault, rank, step, folder, devices = sys.argv[1:]
    torch.set_num_threads(1)
    run._callbacks = lambda recipe: [Fault(fault, int(rank), int(step))]
    made = recipe(folder, int(devices))
    cli._start = lambda args: (made, "toy")
    sys.exit(cli.main(["fit", "toy"]))
