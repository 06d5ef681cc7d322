"""On real files: CIFAR-10 as 60,000 JPEG files, ImageNet photographs of all sizes, some grey."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from layerzoo.config import AugmentConfig, DataConfig
from layerzoo.data.datamodule import ImageData
from layerzoo.data.images import fit_image, read_image

DATA = Path(os.environ.get("LAYERZOO_TEST_DATA", "not set"))
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="LAYERZOO_TEST_DATA is not set to the folder with the unpacked sets")


@pytest.mark.slow
def test_cifar10_is_decoded_fast_and_then_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERZOO_CACHE", str(tmp_path))
    config = DataConfig(f"folder:{DATA / 'cifar10'}", pipeline="memory", augment=AugmentConfig(crop_padding=4, flip="random"))
    made, waits = [], []
    for _ in range(2):
        cpu, start = os.times(), time.monotonic()
        made.append(ImageData(config, 0))
        made[-1].setup()
        waits.append((sum(os.times()[:4]) - sum(cpu[:4]), time.monotonic() - start))
    assert waits[0][0] < 40 and waits[1][1] < 15, waits  # CPU seconds, which neighbours do not stretch much: about 10
    first, second = made
    assert first.num_samples == {"train": 50000, "val": 10000, "test": 10000}
    assert all(torch.equal(first.pixels[s], second.pixels[s]) for s in ("train", "test"))
    assert np.allclose(first.mean, (0.4914, 0.4822, 0.4465), atol=1e-3) and np.allclose(first.std, (0.247, 0.243, 0.262), atol=3e-3)
    seen = torch.zeros(10)
    for x, y in first.train_dataloader():
        seen += torch.bincount(y, minlength=10)
    assert x.shape[1:] == (3, 32, 32) and seen.sum() == 50000 // 128 * 128


def test_photographs(tmp_path):
    files = sorted((DATA / "imagenet-fullres-40").glob("*.JPEG"))
    for split, some in (("train", files[:16]), ("val", files[16:22])):
        for k, file in enumerate(some):
            folder = tmp_path / split / "ab"[k % 2]
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, folder)
    augment = AugmentConfig(resized_crop=0.25, randaugment="rand-m9-mstd0.5-inc1", flip="random")
    data = ImageData(DataConfig(f"folder:{tmp_path}", img_size=64, batch_size=8, num_workers=0, augment=augment), 0)
    data.setup()
    for x, _ in data.train_dataloader():
        assert x.shape == (8, 3, 64, 64) and x.isfinite().all() and x.std() > 0.2
    x, _ = next(iter(data.val_dataloader()))
    name = data.sets["val"].name(0)
    expected = torch.from_numpy(np.array(fit_image(read_image(Path(name), name), 64))).permute(2, 0, 1) / 255
    assert torch.allclose(x[0] * torch.tensor(data.std)[:, None, None] + torch.tensor(data.mean)[:, None, None], expected, atol=1e-5)
