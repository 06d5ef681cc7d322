"""The hash behind all randomness: equal to SplitMix64 in whole numbers, independent of its neighbours, even."""

import numpy as np
import pytest

from layerzoo.data.draws import Draw, draw, integers, permutation

MASK = 2**64 - 1


def mix(x):
    """SplitMix64's output function, in Python's whole numbers."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def test_equals_whole_number_arithmetic():
    step = 0x9E3779B97F4A7C15
    for key in ((), (0,), (7, 3), (2**63, 0, 5)):
        state = 0
        for word in key:
            state = mix((state ^ word) + step & MASK)
        expected = [mix(state + (i + 1) * step & MASK) for i in (0, 1, 2, 10**6)]
        assert draw(np.array([0, 1, 2, 10**6]), *key).tolist() == expected


def test_published_sequence():
    assert draw(np.arange(3)).tolist() == [16294208416658607535, 7960286522194355700, 487617019471545679]  # SplitMix64 from seed 0


def test_value_of_an_index_does_not_depend_on_the_others():
    whole = draw(np.arange(1000), 1, 2)
    some = np.array([999, 3, 3, 500])
    assert np.array_equal(draw(some, 1, 2), whole[some])


@pytest.mark.parametrize("below", [2, 7, 9])
def test_integers_are_even_and_in_range(below):
    values = integers(np.arange(70000), below, 5, 0, Draw.TOP)
    counts = np.bincount(values, minlength=below)
    expected = 70000 / below
    assert len(counts) == below and ((counts - expected) ** 2 / expected).sum() < below + 6 * np.sqrt(2 * below)


def test_uses_and_epochs_share_nothing():
    index = np.arange(20000)
    streams = [integers(index, 2, seed, epoch, use) * 2 - 1 for seed in (0, 1) for epoch in (0, 1) for use in (Draw.TOP, Draw.LEFT, Draw.FLIP)]
    together = np.stack(streams) @ np.stack(streams).T / len(index)
    assert np.abs(together - np.eye(len(streams))).max() < 5 / np.sqrt(len(index))


def test_permutation():
    first = permutation(1000, 3, 0, Draw.ORDER)
    assert sorted(first) == list(range(1000))
    assert np.array_equal(first, permutation(1000, 3, 0, Draw.ORDER))
    for other in (permutation(1000, 3, 1, Draw.ORDER), permutation(1000, 4, 0, Draw.ORDER)):
        assert (first == other).sum() < 10
