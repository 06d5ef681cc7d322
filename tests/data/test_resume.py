"""Lightning resumes in the middle of an epoch with exactly the batches that remain, and counts each validation sample once."""

import hashlib
import os
import re
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from folders import make_folder

from layerzoo.config import AugmentConfig, DataConfig
from layerzoo.data.datamodule import ImageData
from layerzoo.errors import DataRefused

COUNTS = {"train": {"cat": 14, "dog": 9}, "val": {"cat": 3, "dog": 4}}
EVERYTHING = AugmentConfig(crop_padding=2, flip="alternating", cutout=2, mixup=0.5, cutmix=1.0)
STREAMED = AugmentConfig(resized_crop=0.3, randaugment="rand-m9-mstd0.5-inc1", flip="random", mixup=0.5)


class Recorder(pl.LightningModule):
    """Notes what each training step is given."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen = torch.nn.Linear(1, 1), []

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.seen.append((self.current_epoch, batch_idx, hashlib.sha256(x.contiguous().numpy().tobytes() + y.numpy().tobytes()).hexdigest()))
        return self.layer(x.mean().view(1, 1)).sum()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class SaveAlways(pl.Callback):
    """A checkpoint wherever one can be asked for; at a batch's end it holds that batch as done."""

    def __init__(self, folder):
        self.folder, self.steps = folder, []

    def save(self, trainer, task):
        trainer.save_checkpoint(self.folder / f"{len(self.steps)}.ckpt")
        self.steps.append(len(task.seen))

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        self.save(trainer, task)

    def on_validation_batch_end(self, trainer, task, outputs, batch, batch_idx, dataloader_idx=0):
        self.save(trainer, task)

    def on_validation_end(self, trainer, task):
        self.save(trainer, task)

    def on_train_epoch_end(self, trainer, task):
        self.save(trainer, task)


def fit(source, augment, workers=0, pipeline="memory", checkpoint=None, callbacks=(), **options):
    config = DataConfig(source, img_size=8, batch_size=6, eval_batch_size=4, pipeline=pipeline, num_workers=workers, cache=False, augment=augment)
    task = Recorder()
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        callbacks=list(callbacks), num_sanity_val_steps=0, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(task, datamodule=ImageData(config, 3), ckpt_path=checkpoint, weights_only=True)
    return task.seen


@pytest.fixture
def source(tmp_path):
    return f"folder:{make_folder(tmp_path / 'set', COUNTS)}"


@pytest.mark.parametrize("options", [{}, {"val_check_interval": 2}, {"limit_train_batches": 2}, {"accumulate_grad_batches": 2}], ids=str)
def test_memory_resumes_from_any_checkpoint(options, source, tmp_path):
    saver = SaveAlways(tmp_path)
    unbroken = fit(source, EVERYTHING, callbacks=[saver], **options)
    assert len(set(unbroken)) == len(unbroken) == 2 * options.get("limit_train_batches", 3) and len(saver.steps) >= 10
    for k, done in enumerate(saver.steps):
        assert fit(source, EVERYTHING, checkpoint=tmp_path / f"{k}.ckpt", **options) == unbroken[done:], (k, done)


@pytest.mark.parametrize("workers, then", [(0, 0), (2, 2), (0, 2)])
def test_streaming_resumes_from_any_batch(workers, then, source, tmp_path):
    saver = SaveAlways(tmp_path)
    unbroken = fit(source, STREAMED, workers, "streaming", callbacks=[saver])
    assert len(set(unbroken)) == 6
    for done in (1, 2, 4):
        k = saver.steps.index(done)
        assert fit(source, STREAMED, then, "streaming", checkpoint=tmp_path / f"{k}.ckpt") == unbroken[done:]


def test_resuming_on_another_training_set_is_refused(source, tmp_path):
    fit(source, EVERYTHING, callbacks=[SaveAlways(tmp_path)])
    image = Path(source.removeprefix("folder:")) / "train" / "cat" / "003.png"
    image.rename(image.with_name("a.png"))
    with pytest.raises(DataRefused, match=re.escape("training set: got other images, another order or other classes than at the checkpoint, expected those the")):
        fit(source, EVERYTHING, checkpoint=tmp_path / "0.ckpt")


RANKS = """
    import sys
    import pytorch_lightning as pl, torch
    from torchmetrics import SumMetric
    from layerzoo.config import AugmentConfig, DataConfig
    from layerzoo.data.datamodule import ImageData
    from test_resume import Recorder

    class Counter(Recorder):
        def __init__(self):
            super().__init__()
            self.count, self.total = SumMetric(), SumMetric()
        def validation_step(self, batch, batch_idx):
            x, y = batch
            self.count.update(len(y))
            self.total.update(x.double().sum())
        def on_validation_epoch_end(self):
            self.log("count", self.count)
            self.log("total", self.total)

    source, batch, devices = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    data = ImageData(DataConfig(source, img_size=8, batch_size=8, eval_batch_size=batch, pipeline="memory", augment=AugmentConfig(crop_padding=1)), 0)
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", logger=False,
                         enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False, use_distributed_sampler=False)
    trainer.fit(Counter(), datamodule=data)
    if trainer.is_global_zero:
        print("RESULT", trainer.num_training_batches, *(f"{trainer.callback_metrics[k].item():.2f}" for k in ("count", "total")))
"""


@pytest.mark.slow
@pytest.mark.parametrize("batch", [7, 51], ids=["as many batches", "one batch more on rank 0"])
def test_real_ranks_count_each_of_103_samples_once(batch, tmp_path):
    source = f"folder:{make_folder(tmp_path / 'set', {'train': {'cat': 21}, 'val': {'cat': 103}})}"
    script = tmp_path / "ranks.py"
    script.write_text(textwrap.dedent(RANKS))
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    found = []
    for devices in (1, 2):
        environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "LAYERZOO_CACHE": str(tmp_path / "cache")}
        run = subprocess.run(
            [sys.executable, str(script), source, str(batch), str(devices)], capture_output=True, text=True, timeout=300, env=environment, check=False)
        assert run.returncode == 0, run.stderr[-2000:]
        found.append(re.search("RESULT (.*)", run.stdout)[1])
    assert found[0] == found[1] and found[0].startswith("2 103.00 ")
