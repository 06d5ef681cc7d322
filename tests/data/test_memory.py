"""The in-memory pipeline against the obvious loop: each image padded, mirrored, cut out, normalised, erased on its own."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from layerzoo.config import AugmentConfig
from layerzoo.data.augment import Augment, erase
from layerzoo.data.loader import Feed
from layerzoo.data.memory import MemoryLoader

SIZE, COUNT = 8, 41
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


def pixels(count=COUNT, size=SIZE):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8))


def feed(augment=None, index=None, seed=3, **options):
    index = np.arange(COUNT) if index is None else index
    made = Augment(AugmentConfig(**augment), seed, SIZE) if augment is not None else None
    return Feed(**({"index": index, "labels": index % 4, "num_classes": 4, "mean": MEAN, "std": STD, "batch_size": 8, "augment": made} | options))


def reference(image, padding, top, left, mirrored):
    """(H, W, 3) uint8 to the same, one image, by slicing."""
    image = torch.flip(image, (1,)) if mirrored else image
    padded = F.pad(image.permute(2, 0, 1)[None].double(), (padding,) * 4, mode="reflect")[0].permute(1, 2, 0)
    return padded[top : top + SIZE, left : left + SIZE].to(torch.uint8)


def reference_normalised(image):
    return (image.double() / 255 - torch.tensor(MEAN, dtype=torch.double)) / torch.tensor(STD, dtype=torch.double)


@pytest.mark.parametrize("padding", [0, 1, 3, 7])
@pytest.mark.parametrize("flip", ["none", "random", "alternating"])
def test_crops_and_flips_are_bit_equal_to_slicing(padding, flip):
    images, index = pixels(), np.random.default_rng(1).permutation(COUNT)[:33]
    loader = MemoryLoader(images, feed({"crop_padding": padding, "flip": flip}, index))
    augment = loader.feed.augment
    for epoch in (0, 1):
        order = loader.order(epoch)
        tops, lefts = augment.corners(order, epoch)
        flips = augment.mirrored(order, epoch)
        got = torch.cat(list(loader.pixels(order, epoch, [slice(0, 20), slice(20, None)])))
        expected = [reference(images[index[i]], padding, t, le, m) for i, t, le, m in zip(order, tops, lefts, flips)]
        assert torch.equal(got, torch.stack(expected))
        assert len(set(zip(tops, lefts))) > 1 or padding == 0
        assert flip == "none" or 0 < flips.sum() < len(flips)


def test_batches_are_normalised_channels_last_float32_with_their_classes():
    images, loader = pixels(), MemoryLoader(pixels(), feed({"crop_padding": 2, "flip": "random"}))
    order, augment = loader.order(0), loader.feed.augment
    tops, lefts, flips = *augment.corners(order, 0), augment.mirrored(order, 0)
    expected = [reference_normalised(reference(images[i], 2, t, le, m)) for i, t, le, m in zip(order, tops, lefts, flips)]
    batches = list(loader)
    assert [len(x) for x, _ in batches] == [8] * 5 and len(loader) == 5
    for x, y in batches:
        assert x.dtype == torch.float32 and x.is_contiguous(memory_format=torch.channels_last) and y.dtype == torch.int64
    x, y = (torch.cat(parts) for parts in zip(*batches))
    assert (x.permute(0, 2, 3, 1) - torch.stack(expected)).abs().max() < 1e-6
    assert torch.equal(y, torch.from_numpy(order % 4))


@pytest.mark.parametrize("side", [1, 3, 4, 20])
def test_cutout_erases_a_square_around_a_pixel_of_the_image(side):
    plain, cut = (MemoryLoader(pixels(), feed({"cutout": s})) for s in (0, side))
    order = cut.order(0)
    holes = cut.feed.augment.holes(order, 0)
    centres = holes + side // 2
    assert centres.min() >= 0 and centres.max() < SIZE
    whole, erased = (torch.cat([x for x, _ in loader]) for loader in (plain, cut))
    for before, after, top, left in zip(whole, erased, *holes):
        expected = before.clone()
        for row in range(SIZE):
            for column in range(SIZE):
                if top <= row < top + side and left <= column < left + side:
                    expected[:, row, column] = 0
        assert torch.equal(after, expected)


def test_erase_on_a_map_that_is_not_square():
    x = torch.ones(2, 3, 4, 6)
    erase(x, torch.tensor([[-1, 2], [0, 5]]), 3)
    assert x.sum((1, 2, 3)).tolist() == [(24 - 2 * 3) * 3, (24 - 2 * 1) * 3]


def test_flips_alternate():
    augment = feed({"flip": "alternating"}).augment
    index = np.arange(1000)
    first, second, third = (augment.mirrored(index, epoch) for epoch in range(3))
    assert np.array_equal(first, 1 - second) and np.array_equal(first, third) and 400 < first.sum() < 600


def test_random_flips_and_crops_are_drawn_anew_each_epoch_and_evenly():
    augment = feed({"flip": "random", "crop_padding": 2}).augment
    index = np.arange(5000)
    first, second = ((augment.mirrored(index, e), *augment.corners(index, e)) for e in (0, 1))
    for a, b, values in zip(first, second, (2, 5, 5)):
        assert np.abs(np.bincount(a, minlength=values) / 5000 - 1 / values).max() < 0.03
        assert abs((a == b).mean() - 1 / values) < 0.04


def test_images_outside_the_index_are_never_shown():
    images = torch.zeros(10, SIZE, SIZE, 3, dtype=torch.uint8)
    images[[2, 7]] = 255
    loader = MemoryLoader(images, feed({"crop_padding": 3, "flip": "random"}, np.array([2, 7]), batch_size=2))
    x, _ = next(iter(loader))
    assert len(torch.unique(x[:, 0])) == 1 and x[0, 0, 0, 0] > 0


def mixed(config, batch_size=8, index=None):
    """Batches without and with mixing, of the same order and crops."""
    return zip(*(MemoryLoader(pixels(), feed(c, index, batch_size=batch_size)) for c in ({"crop_padding": 1}, {"crop_padding": 1} | config)))


@pytest.mark.parametrize("batch_size", [8, 5, 1])
def test_mixup_is_a_weighted_mean_of_images_and_of_targets(batch_size):
    shares = []
    for (x, y), (z, target) in mixed({"mixup": 1.0}, batch_size):
        half = batch_size // 2
        partner, one_hot = torch.cat([x[-half:], x[:-half]]) if half else x, torch.eye(4)[y]
        other = torch.cat([one_hot[-half:], one_hot[:-half]]) if half else one_hot
        share = ((z - partner) * (x - partner)).sum() / ((x - partner) ** 2).sum() if half else torch.tensor(0.5)
        assert torch.allclose(z, share * x + (1 - share) * partner, atol=1e-5)
        assert torch.allclose(target, share * one_hot + (1 - share) * other, atol=1e-5)
        assert target.dtype == torch.float32 and z.is_contiguous(memory_format=torch.channels_last)
        shares.append(share.item())
    assert batch_size == 1 or (min(shares) > 0 and max(shares) < 1 and len({round(s, 4) for s in shares}) == len(shares))


def test_cutmix_pastes_a_box_and_counts_its_pixels():
    seen = 0
    for (x, y), (z, target) in mixed({"cutmix": 1.0}):
        partner, other, one_hot = x.roll(4, 0), torch.eye(4)[y].roll(4, 0), torch.eye(4)[y]
        pasted = (z != x).any(1).any(0)
        rows, columns = pasted.any(1).nonzero().flatten(), pasted.any(0).nonzero().flatten()
        expected, area = x.clone(), 0
        if len(rows):
            box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
            expected[:, :, box[0], box[1]] = partner[:, :, box[0], box[1]]
            area = len(rows) * len(columns)
            seen += 1
        share = 1 - area / SIZE**2
        assert torch.equal(z, expected) and z.is_contiguous(memory_format=torch.channels_last)
        assert torch.allclose(target, share * one_hot + (1 - share) * other, atol=1e-6)
    assert seen >= 3


def test_boxes_stay_in_the_image_and_have_the_right_size_on_average():
    augment, shares = feed({"cutmix": 1.0}).augment, []
    x, y = torch.zeros(2, 1, 32, 32), torch.tensor([0, 1])
    for step in range(2000):
        shares.append(augment.mix(x, y, 2, 0, step)[1][0, 0].item())
    assert 0 <= min(shares) and max(shares) <= 1
    # a side r drawn, r^2 even in (0, 1), is r - r^2 / 4 after clipping on average over its centre: E (r - r^2 / 4)^2 = 1/2 - 1/5 + 1/48
    assert abs(1 - np.mean(shares) - (1 / 2 - 1 / 5 + 1 / 48)) < 0.02


def test_each_batch_takes_mixup_or_cutmix():
    kinds = []
    for (x, _), (z, _) in mixed({"mixup": 1.0, "cutmix": 1.0}, 4):
        partner = x.roll(2, 0)
        kinds.append(bool(((z == x) | (z == partner)).all()))
    assert 1 <= sum(kinds) <= 9 and len(kinds) == 10


def test_evaluation_is_every_image_once_as_it_is():
    images, loader = pixels(), MemoryLoader(pixels(), feed(batch_size=16))
    batches = list(loader)
    assert [len(x) for x, _ in batches] == [16, 16, 9] and len(loader) == 3
    x, y = (torch.cat(parts) for parts in zip(*batches))
    assert (x.permute(0, 2, 3, 1) - reference_normalised(images)).abs().max() < 1e-6
    assert torch.equal(y, torch.arange(COUNT) % 4)
    assert all(torch.equal(a, b) for a, (b, _) in zip(MemoryLoader(images, feed(batch_size=16, targets=False)), batches))


def test_epochs_differ_and_seeds_differ_and_runs_do_not():
    def run(seed):
        loader = MemoryLoader(pixels(), feed({"crop_padding": 2, "flip": "random", "cutout": 2, "mixup": 0.2}, seed=seed))
        return [[x for x, _ in loader] for _ in range(2)]

    first, again, other = run(3), run(3), run(4)
    for a, b in zip(first, again):
        assert all(torch.equal(x, z) for x, z in zip(a, b))
    assert not any(torch.equal(x, z) for x, z in zip(first[0] + first[0], first[1] + other[0]))
