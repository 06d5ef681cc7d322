"""Position encodings against their formulas, written as loops, and at sizes they were not built for."""

import math
import re

import pytest
import torch

import layerzoo as lz
from layerzoo.positions.base import Position
from layerzoo.registry import POSITIONS

ABSOLUTE = [n for n in POSITIONS.names() if POSITIONS.find(n).kind == "absolute"]


def build(name, size):
    options = dict(POSITIONS.card(name).sizes[size])
    first = next(iter(options))
    return POSITIONS.create(name, options.pop(first), **options), POSITIONS.card(name).sizes[size][first]


def test_all_kinds_are_here():
    assert POSITIONS.names() == ["conditional", "fourier2d", "learned", "learned_offsets", "none", "quadratic", "relative_bias", "rope2d", "sincos2d"]


@pytest.mark.parametrize("size", ["tiny", "base", "odd"])
@pytest.mark.parametrize("name", ABSOLUTE)
@pytest.mark.parametrize("grid", [(1, 1), (7, 13), (32, 32)])
def test_absolute_keeps_shape_and_format(name, size, grid):
    position, dim = build(name, size)
    x = torch.randn(2, dim, *grid)
    assert position(x).shape == x.shape
    y = position(x.to(memory_format=torch.channels_last))
    assert torch.allclose(y, position(x), atol=1e-6) and y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", POSITIONS.names())
def test_card_and_doctest(name):
    import doctest
    import importlib

    module = importlib.import_module(POSITIONS.find(name).__module__)
    assert doctest.testmod(module).attempted >= 1 and doctest.testmod(module).failed == 0
    assert POSITIONS.card(name).sizes.keys() == {"tiny", "base", "odd"}


def test_sincos2d_is_the_formula():
    position, _ = build("sincos2d", "tiny")
    e = position(torch.zeros(1, 8, 3, 5, dtype=torch.double))[0]
    for row in range(3):
        for col in range(5):
            w = [1.0, 10000 ** -0.5]
            expected = [f(p * k) for p, f in ((row, math.sin), (row, math.cos), (col, math.sin), (col, math.cos)) for k in w]
            assert torch.allclose(e[:, row, col], torch.tensor(expected, dtype=torch.double), atol=1e-12)


def test_fourier2d_is_the_formula():
    position = POSITIONS.create("fourier2d", 5, num_waves=4, temperature=100.0).double()
    e = position(torch.zeros(1, 5, 3, 4, dtype=torch.double))[0]
    for row in range(3):
        for col in range(4):
            angles = [2 * math.pi * (place + 1) / side * w for place, side in ((row, 3), (col, 4)) for w in (1, 0.1)]
            waves = torch.tensor([f(angle) for angle in angles for f in (math.sin, math.cos)], dtype=torch.double)
            assert torch.allclose(e[:, row, col], position.proj.weight[:, :, 0, 0] @ waves + position.proj.bias, atol=1e-5)


@pytest.mark.parametrize("num_waves", [0, 3])
def test_waves_come_in_pairs(num_waves):
    with pytest.raises(ValueError, match=f"num_waves: got {num_waves}, expected an even number, at least 2. The paper's code has 32."):
        POSITIONS.create("fourier2d", 8, num_waves=num_waves)


def test_rotary_scores_depend_on_offsets_alone():
    rope, _ = build("rope2d", "tiny")
    q, k = (torch.randn(8, dtype=torch.double).expand(1, 1, 30, 8) for _ in range(2))
    scores = (rope.rotate(q, (5, 6)) @ rope.rotate(k, (5, 6)).transpose(-2, -1))[0, 0].view(5, 6, 5, 6)
    assert torch.allclose(scores[1:, 1:, 1:, 1:], scores[:-1, :-1, :-1, :-1], atol=1e-12)
    assert not torch.allclose(scores[0, 0, 0, 1], scores[0, 1, 0, 0])
    assert torch.allclose(rope.rotate(q, (5, 6)).norm(dim=-1), q.norm(dim=-1))


def test_relative_bias_is_a_look_up():
    bias, _ = build("relative_bias", "tiny")
    b = bias.bias((3, 4)).view(2, 3, 4, 3, 4)
    for i, j, k, m in torch.cartesian_prod(*(torch.arange(n) for n in (3, 4, 3, 4))).tolist():
        assert torch.equal(b[:, i, j, k, m], bias.table[:, i - k + 2, j - m + 3])
    b.sum().backward()
    rows, cols = torch.tensor([1.0, 2, 3, 2, 1]), torch.tensor([1.0, 2, 3, 4, 3, 2, 1])
    assert torch.equal(bias.table.grad[0], rows[:, None] * cols)


def test_relative_bias_at_another_size_keeps_the_centre():
    bias, _ = build("relative_bias", "tiny")
    large = bias.bias((5, 7)).diagonal(dim1=1, dim2=2)
    assert torch.allclose(large, bias.table[:, 2, 3, None].expand_as(large), atol=1e-6)


def test_learned_is_resized_smoothly():
    position, _ = build("learned", "base")
    with torch.no_grad():
        position.table.copy_(torch.linspace(0, 1, 8)[None, None, :, None].expand_as(position.table))
    rows = position(torch.zeros(1, 64, 16, 16))[0, 0, :, 0]
    assert (rows.diff() > -0.02).all() and rows[-1] > 0.9 and rows[0] < 0.1


def test_inner_kinds_refuse_to_be_added():
    rope, _ = build("rope2d", "tiny")
    assert isinstance(rope, Position)
    with pytest.raises(NotImplementedError, match="RoPE2D is of kind 'rotary' and is applied inside attention layers"):
        rope(torch.zeros(1, 8, 2, 2))


@pytest.mark.parametrize("grid", [None, (3,), (0, 4)])
def test_grid_is_checked(grid):
    with pytest.raises(ValueError, match=re.escape(f"grid: got {grid}, expected (H, W), both >= 1. Pass the height and width of the map the layer is built for.")):
        POSITIONS.create("learned", 8, grid=grid)


def test_attention_without_position_is_blind_to_order_and_with_it_is_not():
    tokens, order = torch.randn(1, 12, 16), torch.randperm(12)
    for position, blind in (("none", True), ("rope2d", False)):
        layer = lz.create_layer("mhsa", dim=16, num_heads=2, position=position)
        shuffled = layer(tokens[:, order], grid=(3, 4))
        assert torch.allclose(shuffled, layer(tokens, grid=(3, 4))[:, order], atol=1e-5) is blind
