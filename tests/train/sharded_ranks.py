"""`python sharded_ranks.py FOLDER STRATEGY STEP`: a small run on two ranks, asked to stop at a step by rank 1; its exit code is the command line's."""

import os
import signal
import sys

import pytorch_lightning as pl
import torch

from layerzoo import cli
from layerzoo.config import AugmentConfig, DataConfig, LoggingConfig, MetaConfig, ModelConfig, OptimizerConfig, Recipe, TaskConfig, TrainerConfig
from layerzoo.train import run


class Asks(pl.Callback):
    """Rank 1, at the end of a batch."""

    def __init__(self, step):
        self.step, self.batches = step, 0

    def on_train_batch_end(self, trainer, *args):
        self.batches += 1
        if trainer.global_rank == 1 and self.batches == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def recipe(folder, strategy):
    """All that is random, averaged or kept in buffers; in validation one rank has a batch more than the other.

    By its eps, Adam does not make steps of rounding errors where the gradient is zero, as that of a bias of keys is.
    """
    data = DataConfig("digits", img_size=8, batch_size=16, eval_batch_size=90, train_fraction=0.1, augment=AugmentConfig(crop_padding=1, mixup=0.3))
    layers = ["mhsa", {"name": "performer", "num_features": 16}]
    options = {"depth": 2, "block": {"num_heads": 3, "dropout": 0.1, "norm": "batch"}}
    trainer = TrainerConfig(
        max_epochs=2, accelerator="cpu", devices=2, strategy=strategy, log_every_n_steps=2, rank_timeout=60, accumulate_grad_batches=2,
        gradient_clip_val=1.0)
    task = TaskConfig(ema_decay=0.5, optimizer=OptimizerConfig("adamw", lr=3e-3, options={"eps": 1e-3}))
    model = ModelConfig("vit_tiny", layer=layers, drop_path=0.2, options=options)
    return Recipe(MetaConfig("toy"), model, data, task, trainer, LoggingConfig(wandb="disabled"), runs=folder)


if __name__ == "__main__":
    folder, strategy, step = sys.argv[1:]
    torch.set_num_threads(1)
    run._callbacks = lambda recipe: [Asks(int(step))]
    made = recipe(folder, strategy)
    cli._start = lambda args: (made, "toy")
    sys.exit(cli.main(["fit", "toy"]))
