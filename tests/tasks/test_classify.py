"""Losses, meters, averaged weights and test-time augmentation of Classify, and what a step does not do."""

import re

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from layerzoo.config import OptimizerConfig, ScheduleConfig, TaskConfig
from layerzoo.tasks.classify import TTA, Classify, create_meters
from layerzoo.train.callbacks import StepMeter


class Flat(nn.Sequential):
    def __init__(self, classes=3, size=4):
        super().__init__(nn.Flatten(), nn.Linear(3 * size * size, classes))


def make(model=None, classes=3, **options):
    options.setdefault("optimizer", OptimizerConfig("sgd", lr=0.1, weight_decay=0.0))
    return Classify(model or Flat(classes), TaskConfig(**options), classes=[str(i) for i in range(classes)], steps_per_epoch=4, max_epochs=2)


def fit(task, batches, **options):
    options = {"max_epochs": 2, "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False} | options
    trainer = pl.Trainer(enable_progress_bar=False, enable_model_summary=False, **options)
    trainer.fit(task, Batches(batches), Batches(batches[:1]))
    return trainer


class Batches:
    """A loader: Lightning takes a bare list for several loaders."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)

    def __len__(self):
        return len(self.batches)


def images(count=6, size=4, classes=3):
    return torch.randn(count, 3, size, size), torch.arange(count) % classes


def test_label_smoothing():
    x, y = images()
    task = make(label_smoothing=0.1)
    target = 0.9 * F.one_hot(y, 3) + 0.1 / 3
    torch.testing.assert_close(task.training_step((x, y)), -(target * task.model(x).log_softmax(1)).sum(1).mean())
    plain = nn.CrossEntropyLoss(label_smoothing=0.1)(task.model(x), y)
    torch.testing.assert_close(task.training_step((x, y)), plain)


def test_soft_targets():
    x, _ = images()
    soft = torch.rand(6, 3).softmax(1)
    task = make(label_smoothing=0.1)
    target = 0.9 * soft + 0.1 / 3
    torch.testing.assert_close(task.training_step((x, soft)), -(target * task.model(x).log_softmax(1)).sum(1).mean())


def test_meters_count_samples_not_batches():
    meters = create_meters("val", 10)
    logits, y = torch.randn(103, 10), torch.randint(10, (103,))
    for part in (slice(0, 50), slice(50, 100), slice(100, 103)):
        meters.update(logits[part], y[part])
    rank = (-logits).argsort(1).argsort(1)[torch.arange(103), y]
    found = meters.compute()
    assert found["val/top1"] == pytest.approx((rank < 1).float().mean().item())
    assert found["val/top5"] == pytest.approx((rank < 5).float().mean().item())
    assert found["val/loss"] == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-5)


def test_top5_needs_more_than_five_classes():
    assert set(create_meters("test", 5).keys()) == {"test/loss", "test/top1"}
    assert set(create_meters("test", 6).keys()) == {"test/loss", "test/top1", "test/top5"}


def test_tta_flip():
    x, _ = images()
    task = make(tta="flip")
    torch.testing.assert_close(task(x), (task.model(x) + task.model(x.flip(3))) / 2)


def test_tta_flip_shift():
    """The six views of airbench: centre and two shifts by one pixel of a reflected border, each with its mirror image."""
    x = torch.randn(2, 3, 5, 7)
    weights, views = zip(*TTA["flip_shift"](x))
    assert weights == (0.25, 0.25, 0.125, 0.125, 0.125, 0.125)
    assert all(v.shape == x.shape for v in views)
    assert torch.equal(views[0], x) and torch.equal(views[1], x.flip(3)) and torch.equal(views[3], views[2].flip(3))
    assert torch.equal(views[2][:, :, 1:, 1:], x[:, :, :-1, :-1]) and torch.equal(views[2][:, :, 0, 1:], x[:, :, 1, :-1])
    assert torch.equal(views[4][:, :, :-1, :-1], x[:, :, 1:, 1:]) and torch.equal(views[4][:, :, -1, :-1], x[:, :, -2, 1:])


def test_tta_is_for_evaluation_alone():
    x, y = images()
    plain, augmented = make(), make(tta="flip")
    augmented.load_state_dict(plain.state_dict())
    assert torch.equal(plain.training_step((x, y)), augmented.training_step((x, y)))


def test_averaged_weights_are_evaluated_and_final():
    batches = [images(), images()]
    task = make(ema_decay=0.5)
    expected = {k: v.clone() for k, v in task.model.state_dict().items()}
    trainer = fit(task, batches, callbacks=[Follow(expected)])
    for name, value in task.final_model.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    x, y = batches[0]
    assert trainer.callback_metrics["val/loss"].item() == pytest.approx(F.cross_entropy(task.average.model(x), y).item())
    assert not torch.equal(task.model[1].weight, task.final_model[1].weight)


class Follow(pl.Callback):
    def __init__(self, average):
        self.average = average

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        decay = min(0.5, (1 + trainer.global_step) / (10 + trainer.global_step))
        for name, value in task.model.state_dict().items():
            self.average[name].lerp_(value, 1 - decay)


def test_rate_of_each_step():
    task = make(schedule=ScheduleConfig("linear", warmup_epochs=0.5, start=0.5), optimizer=OptimizerConfig("sgd", lr=1e-3))
    seen = Rates()
    fit(task, [images()] * 4, callbacks=[seen])
    assert seen.rates == pytest.approx([task.schedule(step) for step in range(8)])
    assert seen.rates[0] == pytest.approx(5e-4) and max(seen.rates) == pytest.approx(1e-3)


class Rates(pl.Callback):
    def __init__(self):
        self.rates = []

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        self.rates += {g["lr"] for g in trainer.optimizers[0].param_groups}


def test_rate_and_average_count_accumulated_steps():
    task = make(ema_decay=0.5)
    updates = []
    task.average.update = updates.append
    trainer = fit(task, [images()] * 3, accumulate_grad_batches=2)
    assert trainer.global_step == 4 and updates == [1, 2, 3, 4]


def test_gradient_clipping():
    x, y = images()
    task = make(optimizer=OptimizerConfig("sgd", lr=1.0, momentum=0.0, weight_decay=0.0, options={"nesterov": False}))
    before = [p.detach().clone() for p in task.model.parameters()]
    fit(task, [(100 * x, y)], max_epochs=1, gradient_clip_val=0.01)
    moved = torch.cat([(p - b).flatten() for p, b in zip(task.model.parameters(), before)])
    assert moved.norm().item() == pytest.approx(0.01, rel=1e-3)


class HostReads(TorchDispatchMode):
    """Counts values that leave their device, by operation and by method."""

    def __enter__(self):
        self.count = 0
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


class OnDevice(StepMeter):
    """As where looking at a loss waits for the device."""

    def on_train_start(self, *args):
        super().on_train_start(*args)
        self.prompt = False


def reads(monkeypatch, steps, **options):
    """Host reads in training `steps` steps, read every tenth; those that need no dispatch are counted by method."""
    counter, task = HostReads(), make(**options)
    for method in ("tolist", "numpy", "cpu"):
        original = getattr(torch.Tensor, method)
        monkeypatch.setattr(torch.Tensor, method, lambda *args, original=original, **kw: (counter.__dict__.update(count=counter.count + 1), original(*args, **kw))[1])
    with counter:
        trainer = pl.Trainer(
            max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            callbacks=[OnDevice(every_n_steps=10)], gradient_clip_val=1.0)
        trainer.fit(task, Batches([images()] * steps))
    monkeypatch.undo()
    return counter.count


@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.9, "label_smoothing": 0.1}])
def test_no_host_read_in_a_step(monkeypatch, options):
    options["optimizer"] = OptimizerConfig("sgd", lr=0.01)
    base = reads(monkeypatch, 10, **options)
    assert reads(monkeypatch, 50, **options) - base == 4  # one for each further reading of the meter


def test_nothing_is_logged_in_a_step(monkeypatch):
    logged = []
    monkeypatch.setattr(pl.LightningModule, "log", lambda self, name, *args, **kw: logged.append(name))
    fit(make(), [images()] * 4, max_epochs=1, num_sanity_val_steps=0)
    assert logged == ["val/loss", "val/top1"]


def test_attributes_keep_the_meaning_of_modules():
    task = make()
    task.note, task.note = "a", "b"
    assert task.note == "b"
    task.average = nn.Linear(1, 1)
    assert "average.weight" in task.state_dict()
    task.average = None
    assert task.average is None and "average.weight" not in task.state_dict()


def test_channels_last():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    seen = []
    model[0].register_forward_hook(lambda m, args, out: seen.append(args[0].is_contiguous(memory_format=torch.channels_last) and out.stride(1) == 1))
    task = make(model)
    task.training_step(images())
    task(images()[0])
    assert seen == [True, True] and model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert make(Flat(), channels_last=False).layout(images()[0]).is_contiguous()


def test_bf16():
    trainer = fit(make(), [images()] * 2, precision="bf16-mixed")
    assert trainer.callback_metrics["val/loss"].dtype == torch.float32 and trainer.callback_metrics["val/loss"].isfinite()


@pytest.mark.slow
def test_compiled_model_trains_alike_and_keeps_its_names():
    torch.manual_seed(1)
    batches = [images(), images()]
    tasks = [make(compile=flag) for flag in (False, True)]
    tasks[1].load_state_dict(tasks[0].state_dict())
    for task in tasks:
        fit(task, batches)
    for (name, a), (other, b) in zip(*(t.final_model.state_dict().items() for t in tasks)):
        assert name == other
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("options, message", [
    ({"label_smoothing": 1.0}, "task.label_smoothing: got 1.0, expected a number in [0, 1). Use 0 to turn it off."),
    ({"ema_decay": -0.1}, "task.ema_decay: got -0.1, expected a number in [0, 1). Use 0 to turn it off."),
])
def test_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make(**options)
