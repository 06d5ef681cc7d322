"""ImageData: what it refuses before data is touched, which pipeline it takes, how it splits, what it says."""

import dataclasses
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import timm.data
import torch
from folders import make_folder
from test_sources import FakeIterable

from layerzoo.config import AugmentConfig, DataConfig
from layerzoo.data import datamodule
from layerzoo.data.datamodule import IMAGENET, ImageData
from layerzoo.data.memory import MemoryLoader
from layerzoo.data.streaming import StreamLoader
from layerzoo.errors import DataRefused, Refusal

COUNTS = {"train": {"cat": 30, "dog": 20, "eel": 1}, "test": {"cat": 6, "dog": 4, "eel": 3}}


@pytest.fixture
def source(tmp_path):
    return f"folder:{make_folder(tmp_path / 'set', COUNTS)}"


def data(source, augment=None, seed=0, **options):
    config = DataConfig(source, **({"img_size": 8, "batch_size": 10, "eval_batch_size": 4, "num_workers": 0, "cache": False} | options))
    return ImageData(dataclasses.replace(config, augment=AugmentConfig(**(augment or {}))), seed)


def ready(source, augment=None, seed=0, **options):
    made = data(source, augment, seed, **options)
    made.prepare_data()
    made.setup("fit")
    return made


def content(loader):
    return {tuple(x.flatten().tolist()) for batch, _ in loader for x in batch}


@pytest.mark.parametrize("options, augment, said", [
    ({"source": "nothing"}, {}, "data.source: got 'nothing', expected digits, folder:PATH, wds:PATH, torch/NAME"),
    ({"pipeline": "stream"}, {}, "data.pipeline: got 'stream', expected a known name such as streaming, auto, memory. help(layerzoo.config.DataConfig) lists all."),
    ({"pipeline": "memory"}, {"resized_crop": 0.1, "randaugment": "rand-m9"},
     "data.pipeline: got memory with data.augment.resized_crop and data.augment.randaugment, expected streaming, which alone transforms images one by one. "
     "Use data.pipeline: streaming, or crop_padding, flip, cutout, mixup and cutmix."),
    ({"pipeline": "memory"}, {"color_jitter": 0.1}, "data.pipeline: got memory with data.augment.color_jitter, expected streaming"),
    ({}, {"resized_crop": 0.1, "crop_padding": 4}, "data.augment: got resized_crop 0.1 and crop_padding 4, expected one kind of random crop. Set one of them to 0."),
    ({}, {"randaugment": "autoaugment"}, "data.augment.randaugment: got 'autoaugment', expected timm's form, such as rand-m9-mstd0.5-inc1."),
    ({}, {"flip": "sometimes"}, "data.augment.flip: got 'sometimes', expected a known name such as"),
    ({}, {"crop_padding": 8}, "data.augment.crop_padding: got 8, expected less than data.img_size = 8, since it mirrors the image. Use an eighth of the size"),
])
def test_options_are_refused_before_data_is_touched(options, augment, said):
    with pytest.raises(Refusal, match=re.escape(said)):
        data(**({"source": "folder:/not/there"} | options), augment=augment)


def test_missing_folder_is_refused_at_setup():
    with pytest.raises(DataRefused, match=re.escape("folder:/not/there: got no such folder, expected train/ with one folder per class")):
        ready("folder:/not/there")


def test_what_a_run_needs_to_know(source):
    made = ready(source)
    assert made.classes == ["cat", "dog", "eel"] and made.in_chans == 3
    assert made.num_samples == {"train": 51, "val": 13, "test": 13}
    pixels = made.pixels["train"].double() / 255
    assert np.allclose(made.mean, pixels.mean((0, 1, 2)), atol=1e-12) and np.allclose(made.std, pixels.std((0, 1, 2), correction=0), atol=1e-9)
    x = torch.cat([x for x, _ in made._create("train", made._feed("train", np.arange(51), batch_size=7))])
    assert x.mean((0, 2, 3)).abs().max() < 1e-5 and (x.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-5


def test_setup_again_does_nothing(source, monkeypatch):
    made = ready(source)
    monkeypatch.setattr(datamodule, "open_source", None)
    made.prepare_data()
    made.setup("test")
    made.setup()


def test_loaders(source):
    made = ready(source, {"crop_padding": 1, "flip": "random"})
    train, val, test, predict = made.train_dataloader(), made.val_dataloader(), made.test_dataloader(), made.predict_dataloader()
    assert [len(loader) for loader in (train, val, test, predict)] == [5, 4, 4, 4]
    assert all(isinstance(loader, MemoryLoader) for loader in (train, val, test, predict))
    assert {y.dtype for _, y in train} == {torch.int64} and sum(len(y) for _, y in test) == 13
    assert all(torch.equal(a, b) for a, (b, _) in zip(predict, test))
    assert torch.bincount(torch.cat([y for _, y in val])).tolist() == [6, 4, 3]
    assert made.train_dataloader() is train


def test_soft_targets_have_one_column_per_class(source):
    _, y = next(iter(ready(source, {"mixup": 0.4}).train_dataloader()))
    assert y.shape == (10, 3) and y.dtype == torch.float32 and torch.allclose(y.sum(1), torch.ones(10))


def test_constant_channels_do_not_divide_by_zero(tmp_path):
    from PIL import Image

    for split in ("train", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
        Image.new("RGB", (8, 8), (255, 0, 51)).save(tmp_path / split / "a" / "x.png")
    made = ready(f"folder:{tmp_path}", batch_size=1)
    assert made.std == [1.0] * 3 and np.allclose(made.mean, (1, 0, 0.2))
    assert all(x.abs().max() < 1e-6 for x, _ in made.train_dataloader())


def test_own_mean_and_std(source):
    made = ready(source)
    made.mean, made.std = [0.0] * 3, [1.0] * 3
    x, _ = next(iter(made.val_dataloader()))
    assert torch.allclose(x, made.pixels["test"][:4].permute(0, 3, 1, 2).float() / 255, atol=1e-6)


def test_held_out_images_are_balanced_disjoint_and_the_same_for_every_seed(source, capsys):
    made = ready(source, val_fraction=0.2)
    assert made.num_samples == {"train": 41, "val": 10, "test": 13}
    assert "; 10 training images held out for validation" in capsys.readouterr().out
    val, train = ({split: made.parts[split][1] for split in ("val", "train")}[s] for s in ("val", "train"))
    labels = made.sets["train"].labels
    assert np.bincount(labels[val], minlength=3).tolist() == [6, 4, 0]  # the only eel is for training
    assert sorted([*val, *train]) == list(range(51))
    assert np.array_equal(ready(source, val_fraction=0.2, seed=1).parts["val"][1], val)
    assert not np.array_equal(val, np.sort(val)[0] + np.arange(10))
    assert not content(made.val_dataloader()) & content(made.train_dataloader())


def test_train_fraction_is_balanced_and_leaves_evaluation_alone(source):
    made = ready(source, train_fraction=0.1, batch_size=6)
    assert np.bincount(made.sets["train"].labels[made.parts["train"][1]]).tolist() == [3, 2, 1]
    assert made.num_samples == {"train": 6, "val": 13, "test": 13}
    both = ready(source, train_fraction=0.5, val_fraction=0.2)
    assert both.num_samples == {"train": 21, "val": 10, "test": 13} and not set(both.parts["train"][1]) & set(both.parts["val"][1])


def test_which_splits_stand_in_for_others(tmp_path, capsys):
    train = {"cat": 4, "dog": 4}
    for name, splits, options, expected, said in (
            ("a", {"train": train, "val": {"cat": 1, "dog": 1}}, {}, {"val": 2, "test": 2}, "; no test split: testing is on the val images"),
            ("b", {"train": train, "test": {"cat": 1, "dog": 2}}, {}, {"val": 3, "test": 3}, "; no val split: validation is on the test images"),
            ("c", {"train": train}, {"val_fraction": 0.25}, {"val": 2, "test": 2}, "2 training images held out for validation; no test split: testing is on the val"),
            ("d", {"train": train, "val": {"cat": 1, "dog": 1}, "test": {"cat": 3, "dog": 1}}, {}, {"val": 2, "test": 4}, "mean and std of the training images\n")):
        made = ready(f"folder:{make_folder(tmp_path / name, splits)}", batch_size=2, **options)
        assert {k: v for k, v in made.num_samples.items() if k != "train"} == expected
        assert said in capsys.readouterr().out


@pytest.mark.parametrize("splits, fraction, said", [
    ({"train": {"cat": 4}}, 0.0, "data.val_fraction: got 0, expected above 0, as folder:{} has neither a val nor a test split. Use 0.1 for a tenth."),
    ({"train": {"cat": 4}, "val": {"cat": 1}}, 0.1, "data.val_fraction: got 0.1, expected 0, as folder:{} has its own val split. Delete it."),
    ({"train": {"cat": 4}}, 0.01, "data.val_fraction: got 0.01, expected at least one image of some class. Raise it."),
])
def test_shares_that_cannot_be_held_out(splits, fraction, said, tmp_path):
    make_folder(tmp_path, splits)
    with pytest.raises(Refusal, match=re.escape(said.format(tmp_path))):
        ready(f"folder:{tmp_path}", val_fraction=fraction)


def test_auto_goes_by_size_and_says_why(source, monkeypatch, capsys):
    made = ready(source)
    assert made.in_memory and capsys.readouterr().out == (
        "feed   in memory, as it takes at most 2 GiB: 64 images of 8 x 8 pixels, 0.00 GiB; mean and std of the training images; "
        "no val split: validation is on the test images\n")
    monkeypatch.setattr(datamodule, "MEMORY_LIMIT", 64 * 8 * 8 * 3 - 1)
    made = ready(source)
    assert not made.in_memory and (made.mean, made.std) == IMAGENET
    assert capsys.readouterr().out.startswith("feed   streamed by 0 workers, as it takes more than 0 GiB: 64 images of 8 x 8 pixels, 0.00 GiB; mean and std of ImageNet;")
    assert ready(source, pipeline="memory").in_memory
    assert "feed   in memory, as asked: " in capsys.readouterr().out
    monkeypatch.undo()
    assert not ready(source, pipeline="streaming").in_memory
    assert "feed   streamed by 0 workers, as asked: " in capsys.readouterr().out
    made = ready(source, {"resized_crop": 0.5, "randaugment": "rand-m9"})
    assert isinstance(made.train_dataloader(), StreamLoader)
    assert "feed   streamed by 0 workers, for data.augment.resized_crop and data.augment.randaugment: " in capsys.readouterr().out


def test_both_pipelines_give_the_same(source):
    memory, stream = (ready(source, {"crop_padding": 2, "flip": "random", "cutout": 2}, pipeline=p, val_fraction=0.2) for p in ("memory", "streaming"))
    stream.mean, stream.std = memory.mean, memory.std
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        for (x, y), (z, t) in zip(getattr(memory, name)(), getattr(stream, name)(), strict=True):
            assert torch.equal(x, z) and torch.equal(y, t)
    assert torch.equal(memory.training_images(7), stream.training_images(7))


def test_training_images_are_of_all_classes_and_not_augmented(source):
    made = ready(source, {"crop_padding": 2, "cutout": 4})
    images = made.training_images(40)
    plain = content(made._create("train", made._feed("train", np.arange(51), batch_size=7)))
    found = {tuple(x.flatten().tolist()) for x in images}
    assert images.shape == (40, 3, 8, 8) and found <= plain and len(found) == 40
    assert len(made.training_images(1000)) == 51


def test_sequential_sources_are_read_once_into_memory(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", SimpleNamespace(
        builder=lambda name: SimpleNamespace(info=SimpleNamespace(splits=["train", "test"])), __spec__=object()))
    monkeypatch.setattr(timm.data, "create_dataset", lambda text, split, download: FakeIterable([0, 2, 1, 1, 0]))
    made = ready("tfds/x", batch_size=5)
    assert made.classes == ["0", "1", "2"] and "feed   in memory, as the source can only be read from first to last: 10" in capsys.readouterr().out
    assert sorted(next(iter(made.train_dataloader()))[1].tolist()) == [0, 0, 1, 1, 2]
    with pytest.raises(Refusal, match=re.escape(
            "data.pipeline: got streaming for tfds/x, expected memory: this source can only be read from first to last, so its order cannot be drawn. Use data.pipeline")):
        ready("tfds/x", pipeline="streaming")
    with pytest.raises(Refusal, match=re.escape("Use data.pipeline: memory without data.augment.resized_crop, or a source with random access such as hfds/.")):
        ready("tfds/x", {"resized_crop": 0.5})


def attached(made, rank, world):
    made.trainer = SimpleNamespace(global_rank=rank, world_size=world, strategy=SimpleNamespace(root_device=torch.device("cpu")))
    return made


@pytest.mark.parametrize("world", [2, 4])
def test_ranks(world, source):
    whole = ready(source, {"crop_padding": 1}, batch_size=8)
    ranks = [attached(ready(source, {"crop_padding": 1}, batch_size=8), r, world) for r in range(world)]
    for batches in zip([x for x, _ in whole.train_dataloader()], *[[x for x, _ in made.train_dataloader()] for made in ranks], strict=True):
        assert torch.equal(torch.stack(batches[1:], 1).flatten(0, 1), batches[0])
    assert sum(len(y) for made in ranks for _, y in made.val_dataloader()) == 13
    with pytest.raises(Refusal, match=re.escape("data.batch_size: got 9 over 2 devices, expected a multiple of 2. Use 8 or 10.")):
        attached(ready(source, batch_size=9), 0, 2).train_dataloader()


def test_digits_as_in_the_quickstart():
    made = ready("digits", {"crop_padding": 3}, img_size=32, batch_size=64, cache=True)
    assert made.num_samples == {"train": 1442, "val": 355, "test": 355} and len(made.train_dataloader()) == 22
    x, y = next(iter(made.train_dataloader()))
    assert x.shape == (64, 3, 32, 32) and y.shape == (64,)
