"""Data that changes under a run that was stopped; images that are broken."""

import dataclasses
import errno
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from outcome import equal
from runs import At, folder, left, runner

from layerzoo.config import AugmentConfig, DataConfig
from layerzoo.data import sources
from layerzoo.data.datamodule import ImageData
from layerzoo.data.images import named
from layerzoo.data.streaming import StreamLoader
from layerzoo.data.unreadable import Unreadable
from layerzoo.errors import DataRefused

sys.path.append(str(Path(__file__).parents[1] / "data"))
from folders import make_folder  # noqa: E402

COUNTS = {"train": {"cat": 40, "dog": 40}, "test": {"cat": 6, "dog": 6}}  # 8 steps an epoch of 10


@pytest.fixture
def fit(tmp_path, monkeypatch, capsys):
    images = make_folder(tmp_path / "set", COUNTS)

    def call(*callbacks, **options):
        data = DataConfig(f"folder:{images}", img_size=8, batch_size=10, eval_batch_size=6, cache=False, **options)
        return runner(tmp_path, monkeypatch, capsys)(*callbacks, change=lambda recipe: dataclasses.replace(recipe, data=data))
    return call


def stop():
    os.kill(os.getpid(), signal.SIGTERM)


CHANGES = {
    "added": lambda cats: shutil.copy(cats / "003.png", cats / "003a.png"), "deleted": lambda cats: (cats / "003.png").unlink(),
    "renamed": lambda cats: (cats / "003.png").rename(cats / "z.png"), "moved": lambda cats: (cats / "003.png").rename(cats.with_name("dog") / "a.png")}


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", ["memory", "streaming"])
def test_a_training_set_that_changed_is_refused_until_it_is_restored(fit, tmp_path, pipeline):
    options = {"pipeline": pipeline, "num_workers": 0}
    assert fit(At(stop), **options)[0] == 143
    before, cats = {path.name for path in (folder(tmp_path) / "ckpt").iterdir()}, tmp_path / "set" / "train" / "cat"
    for name, change in CHANGES.items():
        shutil.copytree(cats.parents[1], tmp_path / "kept")
        change(cats)
        code, said = fit(**options)
        assert code == 65 and re.match(
            "training set: got other images, another order or other classes than at the checkpoint, expected those the run began with. Restore them", said), (name, said)
        assert {path.name for path in (folder(tmp_path) / "ckpt").iterdir()} == before, name
        shutil.rmtree(cats.parents[1])
        (tmp_path / "kept").rename(cats.parents[1])
    assert fit(**options)[0] == 0
    resumed = left(tmp_path)
    shutil.rmtree(tmp_path / "toy")
    assert fit(**options)[0] == 0
    equal(resumed, left(tmp_path))


BROKEN = {"cat/003.png": b"", "cat/004.png": b"no image", "cat/039.png": "half", "dog/007.png": "flipped"}
STANDS_IN = {"cat/003.png": "cat/005.png", "cat/004.png": "cat/005.png", "cat/039.png": "cat/000.png", "dog/007.png": "dog/008.png"}


def break_some(train):
    for name, how in BROKEN.items():
        whole = (train / name).read_bytes()
        parts = {"half": whole[: len(whole) // 2], "flipped": whole[:60] + bytes([whole[60] ^ 1]) + whole[61:]}
        (train / name).write_bytes(parts.get(how, how))


def opened(images, pipeline="memory", workers=0, **options):
    augment = AugmentConfig(crop_padding=2, flip="random", mixup=0.5)
    given = {"batch_size": 10} | options
    data = ImageData(DataConfig(f"folder:{images}", img_size=8, eval_batch_size=6, pipeline=pipeline, num_workers=workers, augment=augment, **given), 3)
    data.setup()
    data.mean, data.std = [0.5] * 3, [0.25] * 3
    return data


def same(one, other):
    return len(one) == len(other) and all(torch.equal(a, b) for x, y in zip(one, other) for a, b in zip(x, y))


@pytest.mark.parametrize("pipeline, workers", [("memory", 0), ("streaming", 0), ("streaming", 2)])
def test_what_stands_in_is_the_next_of_its_class(tmp_path, capsys, pipeline, workers):
    """The batches of three epochs are those of a folder in which that image lies under the broken one's name; each is said once."""
    images, twin = make_folder(tmp_path / "set", COUNTS), make_folder(tmp_path / "twin", COUNTS)
    break_some(images / "train")
    for name, other in STANDS_IN.items():
        shutil.copy(twin / "train" / other, twin / "train" / name)
    data, expected = opened(images, pipeline, workers, max_unreadable=4), opened(twin)
    for _ in range(3):
        assert same([*data.train_dataloader()], [*expected.train_dataloader()])
    data.close()
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("broken, another of its class stands in: ")]
    assert sorted(re.search(r"image .*/train/(\S+): got ", line)[1] for line in said) == sorted(BROKEN)
    assert len(data.training_images(80)) == 80


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_and_resumed_epochs_have_the_same(tmp_path, workers):
    images = make_folder(tmp_path / "set", COUNTS)
    break_some(images / "train")
    whole, index = [*opened(images, max_unreadable=4, batch_size=20).train_dataloader()], np.arange(80)
    data = opened(images, "streaming", max_unreadable=4)
    made = []
    for rank in (0, 1):
        feed = data._feed("train", index, batch_size=20, augment=data.augment, rank=rank, world_size=2, listing="")
        loader = StreamLoader(data.sets["train"], 8, feed, workers, unreadable=Unreadable(data.sets["train"], 4, index))
        loader.load_state_dict({"epoch": 0, "samples": 20, "listing": ""})
        made.append([*loader])
        loader.close()
    for (x, _), *parts in zip(whole[1:], *made, strict=True):
        assert torch.equal(x[0::2], parts[0][0]) and torch.equal(x[1::2], parts[1][0])


@pytest.mark.parametrize("pipeline, workers", [("memory", 0), *(pytest.param("streaming", n, marks=pytest.mark.slow) for n in (0, 2))])
def test_more_than_may_be(fit, tmp_path, pipeline, workers):
    """None are allowed unless the recipe says so; then so many; and none of what is measured on."""
    options = {"pipeline": pipeline, "num_workers": workers}
    break_some(tmp_path / "set" / "train")
    code, said = fit(**options)
    assert code == 65 and re.search(r"image .*/train/(cat|dog)/0\d\d.png: got \w+: .*, expected a whole image file. Repair or delete it.", said), said
    code, said = fit(**options, max_unreadable=3)
    assert code == 65 and said.startswith("set-train: got 4 images that cannot be read, expected at most data.max_unreadable = 3. The first:\nimage "), said
    (tmp_path / "set" / "test" / "cat" / "002.png").write_bytes(b"")
    code, said = fit(**options, max_unreadable=4)
    assert code == 65 and re.search(r"image .*/test/cat/002.png: got ", said), said


def test_a_class_without_a_whole_image_and_a_broken_one_that_is_measured_on(tmp_path):
    images = make_folder(tmp_path / "set", {"train": {"cat": 2, "dog": 10}})
    for name in ("000", "001"):
        (images / "train" / "cat" / f"{name}.png").write_bytes(b"")
    for pipeline in ("memory", "streaming"):
        with pytest.raises(DataRefused, match="train/cat/00.*got UnidentifiedImageError"):
            [*opened(images, pipeline, max_unreadable=9, val_fraction=0.1).train_dataloader()]
    shutil.rmtree(images)
    make_folder(images, {"train": {"cat": 10, "dog": 10}})
    data = opened(images, val_fraction=0.3)
    held = data.sets["train"].name(int(data.parts["val"][1][0]))
    Path(held).write_bytes(b"")
    with pytest.raises(DataRefused, match=f"^image {re.escape(held)}: got "):
        opened(images, val_fraction=0.3, max_unreadable=9)


@pytest.mark.parametrize("pipeline", ["memory", "streaming"])
def test_a_file_that_the_system_does_not_give_is_no_broken_one(tmp_path, monkeypatch, pipeline):
    images = make_folder(tmp_path / "set", COUNTS)
    read, victim = sources.read_image, images / "train" / "cat" / "003.png"

    def reads(path, name):
        with named(name):
            if path == victim:
                raise OSError(errno.EIO, os.strerror(errno.EIO), name)
        return read(path, name)

    monkeypatch.setattr(sources, "read_image", reads)
    with pytest.raises(DataRefused, match="003.png"):
        [*opened(images, pipeline, max_unreadable=9).train_dataloader()]


@pytest.mark.slow
@pytest.mark.parametrize("pipeline, workers", [("memory", 0), ("streaming", 2)])
def test_a_run_with_broken_images_goes_on_to_the_same_bits(fit, tmp_path, pipeline, workers):
    options = {"pipeline": pipeline, "num_workers": workers, "max_unreadable": 4}
    break_some(tmp_path / "set" / "train")
    assert fit(**options)[0] == 0
    unbroken = left(tmp_path)
    shutil.rmtree(tmp_path / "toy")
    assert fit(At(stop), **options)[0] == 143 and fit(**options)[0] == 0
    equal(left(tmp_path), unbroken)
