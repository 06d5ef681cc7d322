"""Streaming gives what the in-memory pipeline gives, each image from a seed of its own, and never crashes or waits in silence."""

import multiprocessing
import os
import pickle
import random
import re
import signal
import threading
import time
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
from folders import make_folder, picture
from PIL import Image

from layerzoo.config import AugmentConfig
from layerzoo.data.augment import Augment
from layerzoo.data.cache import decode
from layerzoo.data.loader import Feed
from layerzoo.data.memory import MemoryLoader
from layerzoo.data.sources import ImageSet, open_source
from layerzoo.data.streaming import StreamLoader, check_policy, create_transforms, posterize, seeded
from layerzoo.data.workers import pulse, watched
from layerzoo.errors import DataRefused, Refusal, WorkerLost

SIZE = 8


@pytest.fixture
def images(tmp_path):
    make_folder(tmp_path, {"train": {"cat": 11, "dog": 10}, "test": {"cat": 1, "dog": 1}}, size=(12, 10))
    return open_source(f"folder:{tmp_path}").splits["train"]


def feed(images, config=None, index=None, **options):
    index = np.arange(len(images)) if index is None else index
    augment = Augment(AugmentConfig(**config), 0, SIZE) if config is not None else None
    return Feed(
        index=index, labels=images.labels[index], num_classes=2, mean=[0.5] * 3, std=[0.25] * 3, batch_size=4, augment=augment, **options)


def equal(first, second):
    first, second = list(first), list(second)
    return len(first) == len(second) and all(torch.equal(a, b) for x, y in zip(first, second) for a, b in zip(x, y))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("config", [
    None, {}, {"crop_padding": 3, "flip": "random", "cutout": 3}, {"crop_padding": 1, "flip": "alternating", "mixup": 0.5, "cutmix": 1.0}])
def test_the_same_bits_as_in_memory(config, workers, images):
    index = np.array([3, 1, 19, 20, 7, 8, 11, 12, 13, 14])
    memory = MemoryLoader(decode(images, SIZE), feed(images, config, index))
    stream = StreamLoader(images, SIZE, feed(images, config, index), workers)
    for _ in range(2):
        assert equal(memory, stream)
    assert all(x.is_contiguous(memory_format=torch.channels_last) and x.dtype == torch.float32 for x, _ in stream)


EVERYTHING = {"resized_crop": 0.2, "randaugment": "rand-m9-mstd0.5-inc1", "color_jitter": 0.4, "flip": "random", "cutout": 2, "mixup": 0.5}


def test_transforms_depend_on_seed_epoch_and_sample_alone(images):
    alone, helped = (StreamLoader(images, SIZE, feed(images, EVERYTHING), workers) for workers in (0, 2))
    torch.manual_seed(1)
    random.seed(1)
    first = list(alone)
    torch.manual_seed(2)
    random.seed(2)
    assert equal(first, helped)
    second = list(alone)
    assert equal(second, helped) and not equal(first, second)


def test_ranks_share_the_transformed_batches(images):
    whole = list(StreamLoader(images, SIZE, feed(images, EVERYTHING), 0))
    for rank in (0, 1):
        for (x, y), (part_x, part_y) in zip(whole, StreamLoader(images, SIZE, feed(images, EVERYTHING, rank=rank, world_size=2), 0)):
            assert torch.equal(x[rank::2], part_x) and torch.equal(y[rank::2], part_y)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_state_gives_back_the_batches_that_remain(stop, workers, images):
    unbroken = StreamLoader(images, SIZE, feed(images, EVERYTHING), 0)
    expected = [*unbroken, *unbroken]
    broken, resumed = (StreamLoader(images, SIZE, feed(images, EVERYTHING), workers) for _ in range(2))
    stream = iter(broken)
    seen = [next(stream) for _ in range(stop)]
    resumed.load_state_dict(broken.state_dict())
    assert equal([*seen, *resumed, *resumed], expected)


def test_workers_can_be_spawned(images):
    stream = StreamLoader(images, SIZE, feed(images, EVERYTHING), 0).stream
    index = np.array([3, 12])
    request = 1, index, index
    assert torch.equal(pickle.loads(ForkingPickler.dumps(stream))[request], stream[request])


class Slow(ImageSet):
    """Each image takes a third of a second."""

    def read(self, i):
        time.sleep(0.35)
        return Image.fromarray(picture(i))


def test_slow_workers_are_waited_for():
    """A batch takes longer than the time within which an image is expected."""
    images = Slow("slow", [0] * 4)
    assert len([*StreamLoader(images, SIZE, feed(images), 1, timeout=1.2)]) == 1


class Broken:
    """A loader that loses the socket of a worker; it has died, or not."""

    def __init__(self, seconds):
        self._workers = [multiprocessing.get_context("spawn").Process(target=time.sleep, args=(seconds,)) for _ in range(2)]
        for worker in self._workers:
            worker.start()

    def __iter__(self):
        return self

    def __next__(self):
        raise ConnectionResetError(104, "Connection reset by peer")


@pytest.mark.parametrize("dies", [True, False])
def test_a_worker_that_died_is_named_where_a_socket_tells_first(dies):
    loader = Broken(60)
    if dies:
        threading.Timer(0.2, loader._workers[1].kill).start()
    why = f"DataLoader worker (pid {loader._workers[1].pid}) exited unexpectedly" if dies else "[Errno 104] Connection reset by peer"
    with pytest.raises(WorkerLost, match=re.escape(f"while waiting for result 0: {why}. Look at these files and the next")):
        list(watched(loader, pulse(), 40, lambda k: f"result {k}"))
    for worker in loader._workers:
        worker.join(10)
    assert not any(worker.is_alive() for worker in loader._workers)


def test_an_abandoned_epoch_leaves_nothing_behind(images):
    loader, fresh = (StreamLoader(images, SIZE, feed(images, {"flip": "random"}), 2) for _ in range(2))
    for _ in loader:
        break
    loader.set_epoch(1)
    fresh.set_epoch(1)
    assert equal(loader, fresh)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_named_in_one_line(workers, images):
    Path(images.name(5)).write_bytes(b"")
    with pytest.raises(DataRefused, match=re.escape(f"image {images.name(5)}: got UnidentifiedImageError")) as refusal:
        list(StreamLoader(images, SIZE, feed(images), workers))
    assert len(str(refusal.value).splitlines()) == 1


class Stuck(ImageSet):
    """Its third image does something to the process that reads it."""

    def __init__(self, act):
        super().__init__("stuck", [0] * 8)
        self.act = act

    def read(self, i):
        if i == 6:
            self.act()
        return Image.fromarray(picture(i))


def kill_oneself():
    os.kill(os.getpid(), signal.SIGKILL)


def stop_oneself():
    os.kill(os.getpid(), signal.SIGSTOP)


@pytest.mark.parametrize("act, reason", [
    (kill_oneself, "DataLoader worker .*(killed by signal: Killed|exited unexpectedly)"), (stop_oneself, "no image for 1 seconds"),
    (lambda: time.sleep(60), "no image for 1 seconds")], ids=["killed", "stopped", "stuck"])
def test_dead_and_stuck_workers_end_the_wait_and_are_named(act, reason):
    images = Stuck(act)
    loader = StreamLoader(images, SIZE, feed(images), 1, timeout=30 if act is kill_oneself else 1)
    start = time.monotonic()
    with pytest.raises(WorkerLost, match=re.escape("while waiting for ")) as error:
        list(loader)
    at = "(0 of stuck ... 3|4 of stuck ... 7) of stuck"  # the first batch may have been read, but not yet passed on
    assert re.fullmatch(f"while waiting for {at}: {reason}.*\\. Look at these files and the next, or lower data.num_workers\\.", str(error.value))
    workers = loader.workers._iterator._workers
    loader.workers._iterator._shutdown_workers()  # as torch does when the loader goes
    assert not any(worker.is_alive() for worker in workers) and time.monotonic() - start < 30


def test_global_generators_are_left_alone():
    for generator in (random.random, np.random.random, lambda: torch.rand(()).item()):
        random.seed(3)
        np.random.seed(3)
        torch.manual_seed(3)
        expected = [generator() for _ in range(2)]
        random.seed(3)
        np.random.seed(3)
        torch.manual_seed(3)
        first = generator()
        with seeded(2**63 + 5):
            inside = [generator() for _ in range(3)]
        with seeded(2**63 + 5):
            assert [generator() for _ in range(3)] == inside
        assert [first, generator()] == expected and inside[0] not in expected


@pytest.mark.parametrize("bits, kept", [(0, 1), (1, 1), (3, 3), (7, 7), (8, 8)])
def test_posterize_keeps_at_least_a_bit(bits, kept):
    values = picture(0)
    assert np.array_equal(np.asarray(posterize(Image.fromarray(values), bits)), values & (0xFF << (8 - kept) & 0xFF))


def operations(transform):
    return [op for step in transform.transforms for op in getattr(step, "ops", ())]


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "rand-m10", "rand-m9-n3-mstd101-mmax10-inc1-p1"])
def test_every_operation_at_every_severity(policy):
    _, change = create_transforms(AugmentConfig(randaugment=policy), 32)
    names = set()
    for op in operations(change):
        op.prob, op.magnitude_std = 1.0, 0
        names.add(op.name)
        for op.magnitude in (0, 0.1, 5, 9.9, 10):
            assert op(Image.fromarray(picture(1, (32, 32)))).size == (32, 32)
    assert len(names) == 15


def test_timm_itself_is_left_alone():
    from timm.data import auto_augment

    before = dict(auto_augment.NAME_TO_OP)
    create_transforms(AugmentConfig(randaugment="rand-m9-inc1"), 32)
    assert auto_augment.NAME_TO_OP == before


def test_only_what_is_asked_for_is_done():
    image = Image.fromarray(picture(2, (32, 32)))
    cut, change = create_transforms(AugmentConfig(), 32)
    assert cut is None and change(image) is image
    cut, change = create_transforms(AugmentConfig(resized_crop=0.3), 16)
    assert cut(image).size == (16, 16) and change(image) is image
    _, change = create_transforms(AugmentConfig(randaugment="rand-m9", color_jitter=0.2), 32)
    assert [type(step).__name__ for step in change.transforms] == ["RandAugment", "ColorJitter"]


def test_resized_crops_take_no_less_than_the_stated_share():
    cut, _ = create_transforms(AugmentConfig(resized_crop=0.5), 16)
    ramp = Image.fromarray(np.indices((40, 40)).sum(0).astype(np.uint8)).convert("RGB")  # its range over a crop is height + width
    for _ in range(50):
        low, high = cut(ramp).getextrema()[0]
        assert high - low >= 2 * np.sqrt(0.5) * 40 * 0.85


@pytest.mark.parametrize("policy", ["rand", "rand-m9", "rand-m9-mstd0.5-inc1", "rand-n3-p0.5-mmax15", "rand-m5-tweights", "rand-t3a", "rand-t3aw"])
def test_policies_that_timm_knows(policy):
    check_policy(policy)
    _, change = create_transforms(AugmentConfig(randaugment=policy), 32)
    change(Image.fromarray(picture(0, (32, 32))))


@pytest.mark.parametrize("policy", ["randaug", "augmix-m5", "original", "rand-m", "rand-9", "rand-foo", "rand-m9-zz5", "rand-m9.5", "Rand-m9", "rand-m9 ", "rand-tx"])
def test_policies_that_are_none(policy):
    with pytest.raises(Refusal, match=re.escape(
            f"data.augment.randaugment: got {policy!r}, expected timm's form, such as rand-m9-mstd0.5-inc1. Sections: m magnitude, n operations, ")):
        check_policy(policy)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "rand-m9-mstd0.5", "rand-m7-mstd0.5-inc1", "rand-m10-n4-p1-inc1"])
def test_5000_images_pass_through_randaugment(policy):
    _, change = create_transforms(AugmentConfig(randaugment=policy), 32)
    with seeded(0):
        for k in range(5000):
            assert change(Image.fromarray(picture(k, (32, 32)))).size == (32, 32)


def test_a_closed_loader_has_no_processes_and_starts_anew(images):
    loader = StreamLoader(images, SIZE, feed(images), 2)
    first = list(loader)
    workers = loader.workers._iterator._workers
    assert all(w.is_alive() for w in workers)
    loader.close()
    assert not any(w.is_alive() for w in workers)
    loader.close()
    assert equal(loader, first)
    loader.close()
