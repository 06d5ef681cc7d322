"""Per-position units: against their slow twins, masked, at any size, and what they refuse."""

import doctest
import importlib
import re

import pytest
import torch

from layerzoo.registry import FFNS

NAMES = FFNS.names()
DENSE = ["conv_ffn", "mlp", "swiglu"]  # one network of two maps, fc1 and fc2, all of which every token uses


def build(name, size="tiny"):
    return FFNS.create(name, **FFNS.card(name).sizes[size]).eval()


@pytest.mark.parametrize("name", NAMES)
def test_card_and_doctest(name):
    results = doctest.testmod(importlib.import_module(FFNS.find(name).__module__))
    assert results.attempted >= 1 and results.failed == 0
    assert FFNS.card(name).sizes.keys() == {"tiny", "base", "odd"}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", ["tiny", "odd"])
@pytest.mark.parametrize("name", NAMES)
def test_equals_its_twin_forward_and_backward(name, size, masked):
    layer, grid = build(name, size).double(), (3, 4)
    for p in layer.parameters():
        torch.nn.init.normal_(p, std=0.5)
    tokens = torch.randn(2, 12, layer.dim, dtype=torch.double, requires_grad=True)
    mask = torch.rand(2, 12) > 0.4 if masked else None
    fast, slow = layer(tokens, mask=mask, grid=grid), importlib.import_module(f"oracles.{name}").twin(layer, tokens, grid, mask)
    assert torch.allclose(fast, slow, rtol=0, atol=1e-11)
    wanted, weight = [tokens, *layer.parameters()], torch.randn_like(fast)
    grads = [torch.autograd.grad((y * weight).sum(), wanted, allow_unused=True, materialize_grads=True) for y in (fast, slow)]
    for a, b in zip(*grads):
        assert torch.allclose(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("grid", [(1, 1), (7, 13), (32, 32)])
@pytest.mark.parametrize("name", NAMES)
def test_keeps_shape_and_format(name, grid):
    layer = build(name)
    x = torch.randn(2, layer.dim, *grid)
    y = layer(x)
    assert y.shape == x.shape and y.is_contiguous()
    other = layer(x.to(memory_format=torch.channels_last))
    assert torch.allclose(other, y, atol=1e-5) and other.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", NAMES)
def test_masked_tokens_influence_nothing(name):
    layer, grid = build(name), (3, 4)
    tokens, mask = torch.randn(3, 12, layer.dim), torch.rand(3, 12) > 0.4
    mask[2] = False
    y = layer(tokens, mask=mask, grid=grid)
    spoilt = tokens.masked_fill(~mask.unsqueeze(-1), float("nan")).requires_grad_()
    z = layer(spoilt, mask=mask, grid=grid)
    assert torch.equal(y, z) and not y[~mask].any()
    z.sum().backward()
    assert all(p.grad.isfinite().all() for p in [spoilt, *layer.parameters()] if p.grad is not None)


@pytest.mark.parametrize("name", NAMES)
def test_padding_with_a_mask_changes_nothing(name):
    layer = build(name)
    x, mask = torch.randn(2, layer.dim, 5, 7), torch.zeros(2, 5, 7, dtype=torch.bool)
    mask[:, :3, :4] = True
    assert torch.allclose(layer(x, mask=mask.flatten(1))[:, :, :3, :4], layer(x[:, :, :3, :4]), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_stays_finite(name, dtype):
    layer = build(name, "base").train()
    x = (10 * torch.randn(2, layer.dim, 4, 5)).requires_grad_()
    with torch.autocast("cpu", dtype):
        y = layer(x)
    y.float().mean().backward()
    assert y.isfinite().all() and all(p.grad.isfinite().all() and p.grad.any() for p in [x, *layer.parameters()])


@pytest.mark.parametrize("name", NAMES)
def test_compiles_and_exports(name):
    torch._dynamo.reset()
    layer, x = build(name), torch.randn(2, FFNS.card(name).sizes["tiny"]["dim"], 4, 5)
    assert torch.allclose(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x), atol=1e-6)
    assert torch.allclose(torch.export.export(layer, (x,)).module()(x), layer(x), atol=1e-6)


@pytest.mark.parametrize("name", DENSE)
def test_dropout_is_off_in_eval_and_mlp_ratio_sets_the_width(name):
    layer = FFNS.create(name, 16, mlp_ratio=3, dropout=0.5)
    x = torch.ones(1, 16, 6, 6)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    weights = layer.fc1.weight.numel() + layer.fc2.weight.numel()
    assert weights == 2 * 3 * 16**2  # the same for gated units


@pytest.mark.parametrize("name", [name for name in NAMES if "mlp_ratio" in FFNS.options(name)])
def test_no_hidden_channel_is_refused(name):
    message = "mlp_ratio: got 0.1, expected a number that leaves a hidden channel. Choose one such as 4."
    with pytest.raises(ValueError, match=re.escape(message)):
        FFNS.create(name, 8, mlp_ratio=0.1)
