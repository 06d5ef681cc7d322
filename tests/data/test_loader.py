"""Order, shares of ranks and resumption, on loaders that give back sample numbers."""

import re

import numpy as np
import pytest
import torch
from test_memory import feed

from layerzoo.config import AugmentConfig
from layerzoo.data.augment import Augment
from layerzoo.data.loader import Feed, Loader, normalise
from layerzoo.errors import DataRefused, Refusal


class Numbers(Loader):
    """Each image is one pixel, of three bytes that state the sample and the epoch."""

    def pixels(self, index, epoch, parts):
        numbers = torch.from_numpy(np.stack([index // 256, index % 256, np.full(len(index), epoch)], 1)).to(torch.uint8)
        for part in parts:
            yield numbers[part].view(-1, 1, 1, 3)


def numbers(count, batch_size, train=True, **options):
    labels = np.arange(count)
    augment = Augment(AugmentConfig(), 5, 1) if train else None
    return Numbers(Feed(
        index=labels, labels=labels, num_classes=count, mean=[0.0] * 3, std=[1 / 255] * 3, batch_size=batch_size, augment=augment, **options))


def samples(batches):
    """Sample numbers of each batch, which are also the labels."""
    found = []
    for x, y in batches:
        number = (x[:, 0] * 256 + x[:, 1]).flatten().round().long()
        assert torch.equal(number, y)
        found.append(number.tolist())
    return found


@pytest.mark.parametrize("world", [1, 2, 4, 7])
@pytest.mark.parametrize("batch", [1, 10, 500])
def test_evaluation_counts_each_of_103_samples_once(world, batch):
    shares = [sum(samples(numbers(103, batch, train=False, rank=r, world_size=world)), []) for r in range(world)]
    assert sorted(sum(shares, [])) == list(range(103))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    loaders = [numbers(103, batch, train=False, rank=r, world_size=world) for r in range(world)]
    assert [len(loader) for loader in loaders] == [len(list(loader)) for loader in loaders]


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_each_global_batch(world):
    whole = samples(numbers(103, 12))
    shares = [samples(numbers(103, 12, rank=r, world_size=world)) for r in range(world)]
    assert len(whole) == 8 and all(len(share) == 8 for share in shares)
    for step, batch in enumerate(whole):
        assert sorted(sum((share[step] for share in shares), [])) == sorted(batch)
        assert all(shares[r][step] == batch[r::world] for r in range(world))


def test_training_drops_what_does_not_fill_a_batch_and_shows_nothing_twice():
    for count, batch, shown in ((103, 10, 100), (100, 10, 100), (9, 10, 9)):
        loader = numbers(count, batch)
        for _ in range(2):
            epoch = sum(samples(loader), [])
            assert len(epoch) == shown == len(set(epoch)) and len(loader) == max(1, count // batch)


def test_every_sample_has_its_turn_to_be_dropped():
    loader = numbers(13, 10)
    dropped = [set(range(13)) - set(sum(samples(loader), [])) for _ in range(40)]
    assert set.union(*dropped) == set(range(13))


def test_fewer_samples_than_the_batch_are_shared_evenly():
    shares = [sum(samples(numbers(11, 40, rank=r, world_size=4)), []) for r in range(4)]
    assert [len(s) for s in shares] == [2] * 4 and len(set(sum(shares, []))) == 8


@pytest.mark.parametrize("batch, world, said", [
    (10, 4, "data.batch_size: got 10 over 4 devices, expected a multiple of 4. Use 8 or 12."),
    (3, 4, "data.batch_size: got 3 over 4 devices, expected a multiple of 4. Use 4."),
])
def test_batches_that_cannot_be_shared(batch, world, said):
    with pytest.raises(Refusal, match=re.escape(said)):
        numbers(100, batch, world_size=world)


@pytest.mark.parametrize("train", [True, False])
def test_more_ranks_than_samples(train):
    for rank in range(4):
        with pytest.raises(DataRefused, match=re.escape("images of a split: got 3 for 4 devices, expected at least one for each. Use fewer devices.")):
            numbers(3, 4, train=train, rank=rank, world_size=4)


def test_mixing_needs_pairs_on_each_rank():
    for config in ({"mixup": 1.0}, {"cutmix": 1.0}):
        with pytest.raises(Refusal, match=re.escape(
                "data.batch_size: got 6, which is 3 on each of 2 devices, expected an even number on each, as mixup and CutMix mix pairs. Use 8.")):
            Loader(feed(config, batch_size=6, world_size=2))
    assert len(Loader(feed({"mixup": 1.0}, batch_size=3)))


def test_mixed_batches_of_ranks_are_those_of_one_process():
    from layerzoo.data.memory import MemoryLoader
    from test_memory import pixels

    config = {"crop_padding": 2, "flip": "random", "cutout": 3, "mixup": 0.4, "cutmix": 1.0}
    whole = list(MemoryLoader(pixels(), feed(config)))
    for rank in (0, 1):
        for (x, y), (part_x, part_y) in zip(whole, MemoryLoader(pixels(), feed(config, rank=rank, world_size=2))):
            assert torch.equal(x[rank::2], part_x) and torch.equal(y[rank::2], part_y)


@pytest.mark.parametrize("stop", [0, 1, 4, 9, 10])
def test_a_state_gives_back_the_batches_that_remain(stop):
    unbroken, broken = numbers(103, 10), numbers(103, 10)
    expected = samples(unbroken) + samples(unbroken) + samples(unbroken)
    seen, stream = samples(broken), iter(broken)
    seen += samples([next(stream) for _ in range(stop)])
    state = broken.state_dict()
    assert state == {"epoch": 1, "samples": 10 * stop, "listing": ""}
    resumed = numbers(103, 10)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert seen + samples(resumed) + samples(resumed) == expected


def test_states_survive_another_number_of_ranks_but_not_another_batch_size():
    loader = numbers(103, 12)
    stream = iter(loader)
    seen = samples([next(stream) for _ in range(3)])
    shares = []
    for rank in range(4):
        shares.append(numbers(103, 12, rank=rank, world_size=4))
        shares[-1].load_state_dict(loader.state_dict())
    rest = [sum(batches, []) for batches in zip(*map(samples, shares))]
    assert [sorted(b) for b in samples(numbers(103, 12))] == [sorted(b) for b in seen + rest]
    with pytest.raises(Refusal, match=re.escape(
            "data.batch_size: got 10, expected a divisor of the 36 samples that the checkpoint's epoch has seen. Use the batch size the run began with.")):
        numbers(103, 10).load_state_dict(loader.state_dict())


def test_states_of_other_data_are_refused():
    state = numbers(103, 12, listing="one").state_dict()
    with pytest.raises(DataRefused, match=re.escape(
            "training set: got other images, another order or other classes than at the checkpoint, expected those the run began with. Restore them, or")):
        numbers(103, 12, listing="other").load_state_dict(state)


def test_lightning_sets_the_epoch():
    straight, told = numbers(50, 10), numbers(50, 10)
    samples(straight)
    stream = iter(told)
    next(stream)
    told.sampler.set_epoch(1)
    assert samples(told) == samples(straight)
    told.load_state_dict({"epoch": 3, "samples": 20, "listing": ""})
    told.sampler.set_epoch(3)
    assert len(samples(told)) == 3
    told.load_state_dict({"epoch": 3, "samples": 20, "listing": ""})
    told.sampler.set_epoch(4)
    assert len(samples(told)) == 5


def test_normalise_is_the_textbook_formula():
    pixels = torch.randint(0, 256, (5, 4, 6, 3), dtype=torch.uint8)
    scale, shift = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([-1.0, 0.5, 2.0])
    x = normalise(pixels, shift, scale)
    assert x.shape == (5, 3, 4, 6) and x.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(x, (pixels.float() * scale + shift).permute(0, 3, 1, 2), atol=1e-6)


def test_pixels_must_be_written():
    with pytest.raises(NotImplementedError, match=re.escape("Loader must define pixels()")):
        next(iter(Loader(feed())))
