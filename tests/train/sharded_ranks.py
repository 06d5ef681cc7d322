"""`python sharded_ranks.py FOLDER STRATEGY STEP DEED`: a small run on two ranks; its exit code is the command line's.

Rank 1 does the deed: "stop" at the end of batch STEP, "pause" in the first batch of validation STEP, "spoil" an image of batch STEP.
"""

import dataclasses
import math
import os
import signal
import sys

import pytorch_lightning as pl
import torch

from layerzoo import cli
from layerzoo.config import AugmentConfig, DataConfig, LoggingConfig, MetaConfig, ModelConfig, OptimizerConfig, Recipe, TaskConfig, TrainerConfig
from layerzoo.train import run


class Deed(pl.Callback):
    def __init__(self, step, deed):
        self.step, self.deed, self.batches, self.validations = step, deed, 0, 0

    def on_train_batch_start(self, trainer, task, batch, batch_idx):
        if trainer.global_rank == 1 and self.deed == "spoil" and self.batches + 1 == self.step:
            batch[0][1] = math.nan

    def on_train_batch_end(self, trainer, *args):
        self.batches += 1
        if trainer.global_rank == 1 and self.deed == "stop" and self.batches == self.step:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_validation_batch_start(self, trainer, *args):
        self.validations += 1
        if trainer.global_rank == 1 and self.deed == "pause" and self.validations == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def recipe(folder, strategy):
    """All that is random, averaged or kept in buffers; in validation one rank has a batch more than the other.

    By its eps, Adam does not make steps of rounding errors where the gradient is zero, as that of a bias of keys is.
    """
    data = DataConfig("digits", img_size=8, batch_size=16, eval_batch_size=59, train_fraction=0.1, augment=AugmentConfig(crop_padding=1, mixup=0.3))
    layers = ["mhsa", {"name": "performer", "num_features": 16}]
    options = {"depth": 2, "block": {"num_heads": 3, "dropout": 0.1, "norm": "batch"}}
    trainer = TrainerConfig(
        max_epochs=2, accelerator="cpu", devices=2, strategy=strategy, log_every_n_steps=2, rank_timeout=60, accumulate_grad_batches=2,
        gradient_clip_val=1.0)
    task = TaskConfig(ema_decay=0.5, optimizer=OptimizerConfig("adamw", lr=3e-3, options={"eps": 1e-3}))
    model = ModelConfig("vit_tiny", layer=layers, drop_path=0.2, options=options)
    return Recipe(MetaConfig("toy"), model, data, task, trainer, LoggingConfig(wandb="disabled"), runs=folder)


if __name__ == "__main__":
    folder, strategy, step, deed = sys.argv[1:]
    torch.set_num_threads(1)
    run._callbacks = lambda recipe: [Deed(int(step), deed)]
    made = recipe(folder, strategy)
    if deed == "spoil":  # every step is read, so that the layer is looked for
        made = dataclasses.replace(made, trainer=dataclasses.replace(made.trainer, log_every_n_steps=1))
    cli._start = lambda args: (made, "toy")
    sys.exit(cli.main(["fit", "toy"]))
