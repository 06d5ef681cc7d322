"""Every layer and ffn against its slow twin in float64: forward, and gradients of the input and of every parameter."""

import importlib
from pathlib import Path

import pytest
import torch

from layerzoo.layers.base import TokenLayer
from layerzoo.registry import DOWNSAMPLES, FFNS, LAYERS, POSITIONS
from layerzoo.testing_claims import build, close

TOLERANCE = {"nystrom": 1e-7, "cosformer": 1e-8}  # the steps of the pseudo-inverse amplify rounding, as does a normaliser near eps
HERE = Path(__file__).parent
TWINS = {p.stem for p in HERE.glob("*.py")} - {Path(__file__).stem}
ROOMS = {name: room for room in (LAYERS, FFNS, POSITIONS, DOWNSAMPLES) for name in room.names()}


def compare(name, layer, fast, slow, inputs):
    tolerance = TOLERANCE.get(name, 1e-9)
    close(f"{name} against its twin", fast, slow, tolerance)
    names, wanted = zip(*inputs.items(), *layer.named_parameters())
    weight = torch.randn_like(fast)
    grads = [torch.autograd.grad((y * weight).sum(), wanted, allow_unused=True, materialize_grads=True) for y in (fast, slow)]
    for what, a, b in zip(names, *grads):
        close(f"gradient of {what} of {name}", a, b, tolerance)


def cases(cls, card):
    """Whether causal, whether masked."""
    if not issubclass(cls, TokenLayer):
        return [(False, False)]
    return [(causal, masked) for causal in (False, True)[: 1 + (card.causal is True)] for masked in (False, True)[: 1 + card.mask]]


@pytest.mark.parametrize("size, grid", [
    pytest.param(size, grid, marks=[pytest.mark.slow] * ((size, grid) == ("odd", (6, 7))), id=f"{size}-{grid}")
    for size in ("tiny", "odd") for grid in ((1, 1), (3, 5), (4, 4), (6, 7))])
@pytest.mark.parametrize("name", [*LAYERS.names(), *FFNS.names()])
def test_layer_equals_its_twin(name, size, grid):
    cls, card, twin = ROOMS[name].find(name), ROOMS[name].card(name), importlib.import_module(f"oracles.{name}").twin
    for causal, masked in cases(cls, card)[: 1 if grid == (6, 7) else None]:  # loops over 42 tokens take seconds
        layer, length = build(cls, card, size, **{"causal": True} if causal else {}), grid[0] * grid[1]
        if issubclass(cls, TokenLayer):
            tokens = torch.randn(1 + masked, length, layer.dim, dtype=torch.double, requires_grad=True)
            mask = (torch.rand(2, length) > 0.4).scatter(1, torch.randint(length, (2, 1)), True) if masked else None
            fast, slow = layer(tokens, mask=mask, grid=grid), twin(layer, tokens, grid, mask)
        else:
            tokens = torch.randn(2, layer.dim, *grid, dtype=torch.double, requires_grad=True)
            fast, slow = layer(tokens), twin(layer, tokens)
        compare(name, layer, fast, slow, {"input": tokens})


@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (6, 7)], ids=str)
@pytest.mark.parametrize("size", ["tiny", "odd"])
@pytest.mark.parametrize("name", sorted(TWINS & {*DOWNSAMPLES.names(), *POSITIONS.names()}))
def test_part_equals_its_twin(name, size, grid):
    card = ROOMS[name].card(name)
    layer = build(ROOMS[name].find(name), card, size)
    x = torch.randn(2, next(iter(card.sizes[size].values())), *grid, dtype=torch.double, requires_grad=True)
    compare(name, layer, layer(x), importlib.import_module(f"oracles.{name}").twin(layer, x), {"input": x})


def test_every_layer_has_a_twin_and_every_twin_a_layer():
    assert {*LAYERS.names(), *FFNS.names()} <= TWINS <= ROOMS.keys()
