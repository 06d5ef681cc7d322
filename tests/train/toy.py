"""A toy task whose data know ranks: `python toy.py DEVICES FOLDER` trains two models and writes what each rank saw."""

import json
import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from layerzoo.config import OptimizerConfig, TaskConfig
from layerzoo.tasks.classify import Classify
from layerzoo.train.callbacks import StepMeter
from layerzoo.train.loggers import MetricsFile

CLASSES = 7
TRAIN, EVAL, GLOBAL_BATCH = 96, 103, 16
QUIET = {
    "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0, "use_distributed_sampler": False,
    "reload_dataloaders_every_n_epochs": 1}


class ToyData(pl.LightningDataModule):
    """Each rank takes every world-size-th sample of a global batch, and of an evaluation set, unpadded."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        mixing = torch.randn(48, CLASSES, generator=generator)
        self.x = torch.randn(TRAIN + EVAL, 3, 4, 4, generator=generator)
        self.y = (self.x.flatten(1) @ mixing).argmax(1)

    def train_dataloader(self):
        part = slice(self.trainer.global_rank, None, self.trainer.world_size)
        order = torch.randperm(TRAIN, generator=torch.Generator().manual_seed(self.trainer.current_epoch))
        mine = torch.cat([batch[part] for batch in order.split(GLOBAL_BATCH)])
        return DataLoader(TensorDataset(self.x[mine], self.y[mine]), batch_size=GLOBAL_BATCH // self.trainer.world_size)

    def val_dataloader(self):
        part = slice(TRAIN + self.trainer.global_rank, None, self.trainer.world_size)
        return DataLoader(TensorDataset(self.x[part], self.y[part]), batch_size=51)  # 2 ranks: 52 and 51 samples, 2 batches and 1

    test_dataloader = val_dataloader


def toy_model(kind: str) -> nn.Module:
    torch.manual_seed(0)
    middle = {"plain": nn.ReLU(), "batch_norm": nn.BatchNorm1d(16), "dropout": nn.Dropout(0.5)}[kind]
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 16), middle, nn.Linear(16, CLASSES))


def toy_task(kind: str = "plain", max_epochs: int = 2, **options) -> Classify:
    config = TaskConfig(optimizer=OptimizerConfig("sgd", lr=0.05, weight_decay=1e-3), **options)
    return Classify(toy_model(kind), config, classes=[str(i) for i in range(CLASSES)], steps_per_epoch=TRAIN // GLOBAL_BATCH, max_epochs=max_epochs)


def train(devices: int, kind: str, folder: Path, **options) -> None:
    folder.mkdir(exist_ok=True)
    task = toy_task(kind, ema_decay=0.5)
    options = {"max_epochs": 2, "devices": devices, "strategy": "ddp" if devices > 1 else "auto", "enable_checkpointing": False} | QUIET | options
    trainer = pl.Trainer(logger=[MetricsFile(folder)], callbacks=[StepMeter(every_n_steps=4)], **options)
    trainer.fit(task, datamodule=ToyData())
    validated = {k: v.item() for k, v in trainer.callback_metrics.items()}
    tested = trainer.test(task, datamodule=ToyData(), verbose=False)[0]
    state = {k: v.tolist() for k, v in task.state_dict().items()}
    (folder / f"rank{trainer.global_rank}.json").write_text(json.dumps({"val": validated, "test": tested, "state": state}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    devices, folder = int(sys.argv[1]), Path(sys.argv[2])
    train(devices, "plain", folder / "plain")
    train(devices, "batch_norm", folder / "batch_norm", max_epochs=3, check_val_every_n_epoch=2)  # none after the last epoch
