"""Downsamples: against their slow twins, at odd sizes, in both memory formats, what they cost, and what they refuse."""

import doctest
import importlib
import re

import pytest
import torch

from layerzoo.downsample.base import Downsample
from layerzoo.registry import DOWNSAMPLES
from layerzoo.testing_claims import cost

NAMES = DOWNSAMPLES.names()
EVERY = [(name, size) for name in NAMES for size in ("tiny", "base", "odd")]


def build(name, size="tiny"):
    return DOWNSAMPLES.create(name, **DOWNSAMPLES.card(name).sizes[size])


def test_all_are_here():
    assert {"conv_stride", "patch_merge", "funnel", "token_learner", "charformer"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_card_and_doctest(name):
    results = doctest.testmod(importlib.import_module(DOWNSAMPLES.find(name).__module__))
    assert results.attempted >= 1 and results.failed == 0
    assert DOWNSAMPLES.card(name).sizes.keys() == {"tiny", "base", "odd"}


@pytest.mark.parametrize("name, size", EVERY)
@pytest.mark.parametrize("grid", [(1, 1), (1, 6), (4, 5)])
def test_equals_its_twin_forward_and_backward(name, size, grid):
    layer = build(name, size).double()
    for p in layer.parameters():
        torch.nn.init.normal_(p, std=0.5)
    x = torch.randn(2, layer.dim, *grid, dtype=torch.double, requires_grad=True)
    fast, slow = layer(x), importlib.import_module(f"oracles.{name}").twin(layer, x)
    assert torch.allclose(fast, slow, rtol=0, atol=1e-10)
    wanted, weight = [x, *layer.parameters()], torch.randn_like(fast)
    for a, b in zip(torch.autograd.grad((fast * weight).sum(), wanted), torch.autograd.grad((slow * weight).sum(), wanted)):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name, size", EVERY)
@pytest.mark.parametrize("grid", [(1, 1), (7, 13), (32, 32)])
def test_makes_the_grid_it_says_and_keeps_the_format(name, size, grid):
    layer = build(name, size).eval()
    x = torch.randn(2, layer.dim, *grid)
    y = layer(x)
    assert y.shape == (2, layer.dim_out, *layer.out_grid(grid)) and y.is_contiguous()
    last = x.to(memory_format=torch.channels_last)
    other = layer(last)
    assert torch.allclose(other, y, atol=1e-5)
    assert other.is_contiguous(memory_format=torch.channels_last) or last.is_contiguous()  # a map of one place is in both formats
    assert torch.allclose(layer(x[1:]), y[1:], atol=1e-5)


@pytest.mark.parametrize("name", sorted({*NAMES} - {"token_learner"}))
def test_halves_the_sides_rounding_up(name):
    assert [build(name).out_grid(grid) for grid in ((1, 1), (7, 12), (32, 5))] == [(1, 1), (4, 6), (16, 3)]


@pytest.mark.parametrize("name", NAMES)
def test_costs_what_its_card_says(name):
    assert cost(DOWNSAMPLES.find(name), DOWNSAMPLES.card(name))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name, size", EVERY)
def test_half_precision_stays_finite(name, size, dtype):
    layer = build(name, size)
    x = (10 * torch.randn(2, layer.dim, 5, 4)).requires_grad_()
    with torch.autocast("cpu", dtype):
        y = layer(x)
    (y.float() * torch.randn(y.shape)).sum().backward()
    assert y.isfinite().all() and all(p.grad.isfinite().all() and p.grad.any() for p in [x, *layer.parameters()])


@pytest.mark.parametrize("name, size", EVERY)
def test_compiles_and_exports(name, size):
    torch._dynamo.reset()  # all share the forward of their base
    layer = build(name, size).eval()
    x = torch.randn(2, layer.dim, 5, 4)
    assert torch.allclose(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x), atol=1e-6)
    assert torch.allclose(torch.export.export(layer, (x,)).module()(x), layer(x), atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_input_is_checked(name):
    layer = build(name)
    for shape in ((2, 3, 4, 4), (2, 8, 4)):
        message = f"input of {type(layer).__name__}: got {shape}, expected a map (B, 8, H, W). Check dim= and the layout."
        with pytest.raises(ValueError, match=re.escape(message)):
            layer(torch.zeros(shape))


@pytest.mark.parametrize("name", NAMES)
def test_channels_are_checked(name):
    with pytest.raises(ValueError, match=re.escape("dim: got 0, expected a whole number >= 1. Pass the channels before and after.")):
        DOWNSAMPLES.create(name, 0, 8, defaults={"grid": (4, 4)})
    with pytest.raises(ValueError, match=re.escape("dim_out: got 4.0, expected a whole number >= 1. Pass the channels before and after.")):
        DOWNSAMPLES.create(name, 8, 4.0, defaults={"grid": (4, 4)})


def test_norm_is_checked():
    with pytest.raises(ValueError, match=re.escape("norm: got 'instance', expected one of layer, group, batch, none. Choose one of these.")):
        DOWNSAMPLES.create("conv_stride", 8, 16, norm="instance")
    with pytest.raises(ValueError, match=re.escape("options of a norm: got name, epsilon, expected name and eps alone. Leave the others out.")):
        DOWNSAMPLES.create("conv_stride", 8, 16, pre_norm={"name": "layer", "epsilon": 1e-6})
    with pytest.raises(ValueError, match=re.escape("pool: got 'mode', expected one of max, mean. Choose one of these.")):
        DOWNSAMPLES.create("pooled_attention", 8, 16, grid=(4, 4), pool="mode")
    with pytest.raises(ValueError, match=re.escape("kernel_size: got 4, expected one of 3, 2. Choose one of these.")):
        DOWNSAMPLES.create("conv_stride", 8, 16, kernel_size=4)


def test_the_formula_is_the_subclass_s():
    with pytest.raises(NotImplementedError, match=re.escape("Downsample must define reduce(); see layerzoo/downsample for examples")):
        Downsample(4, 8)(torch.zeros(1, 4, 2, 2))
