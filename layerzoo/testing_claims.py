"""The part of the conformance kit that measures what a card claims: cost, symmetry and limit."""

from __future__ import annotations

import math
import statistics

import torch
from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.layers.base import Layer
from layerzoo.registry import FFNS, LAYERS
from layerzoo.report.cost import cost as cost_of

COST_TOLERANCE, RATE_TOLERANCE = 0.15, 0.2
DRAWS = 25


class Mismatch(Exception):
    """What a check found is not what it expected."""


def expect(ok: object, what: str, got: object, expected: object) -> None:
    """Raise Mismatch unless `ok`."""
    if not ok:
        raise Mismatch(f"{what}: got {got}, expected {expected}")


def close(what: str, got: Tensor, expected: Tensor, tol: float = 1e-9) -> None:
    """Expect two tensors to be equal to `tol` of the largest value, or of 1."""
    expect(got.shape == expected.shape, what, tuple(got.shape), tuple(expected.shape))
    if got.numel():
        error = ((got - expected).abs().max() / expected.abs().max().clamp(min=1)).item()
        expect(error <= tol, what, f"a difference of {error:.2g}", f"at most {tol:g}")


def build(cls: type[Layer], card: Card, size: str, noise: float = 0.1, **options) -> Layer:
    """A layer of the card's size, in float64 and eval mode, its parameters moved by noise so that no zero hides an error."""
    return _moved(cls(**{**card.sizes[size], **options}), noise)


def _moved(layer: Layer, noise: float) -> Layer:
    layer = layer.double().eval()
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(noise * torch.randn_like(p))
    return layer


def cost(cls: type[Layer], card: Card) -> str:
    """Exponents of time and memory in N, between a map and one of four times its positions.

    Lower terms fade as maps grow, so larger maps are tried until the declared exponents are met.
    """
    layer = build(cls, card, "tiny").float()
    for side in (64, 128, 256):
        small, large = (cost_of(layer, (1, layer.dim, s, s)) for s in (side, 2 * side))
        memory = _exponent(small.activation_bytes, large.activation_bytes)
        time = _exponent(small.flops, large.flops) if large.flops else 0.0
        time = max(time, memory)  # elementwise work is no FLOP, but what is written takes its time
        found = time, memory
        if all(abs(f - c) <= COST_TOLERANCE for f, c in zip(found, card.cost, strict=True)):
            return f"time N^{found[0]:.2f}, memory N^{found[1]:.2f}"
    for what, f, c in zip(("time", "memory"), found, card.cost):
        expect(abs(f - c) <= COST_TOLERANCE, f"{what} exponent in N", f"{f:.2f}", f"{c} within {COST_TOLERANCE}, as the card says")


def _exponent(small: int, large: int) -> float:
    return math.log(large / small, 4) if small else 0.0


def symmetry(cls: type[Layer], card: Card) -> str:
    """The strongest symmetry the layer has: of permutations, of translations away from the border, or none."""
    layer, side, margin, shift = build(cls, card, "tiny"), 32, 10, (1, 3)
    x = torch.randn(1, layer.dim, side, side, dtype=torch.double)
    y, order = layer(x), torch.randperm(side * side)
    inside = (..., slice(margin, side - margin), slice(margin, side - margin))
    shuffled = layer(x.flatten(2)[..., order].view_as(x)).flatten(2)
    shifted = layer(x.roll(shift, (2, 3)))[inside]
    if torch.allclose(shuffled, y.flatten(2)[..., order], rtol=0, atol=1e-9):
        found = "permutation"
    elif torch.allclose(shifted, y.roll(shift, (2, 3))[inside], rtol=0, atol=1e-9):
        found = "translation"
    else:
        found = "none"
    expect(found == card.symmetry, "symmetry", found, f"{card.symmetry}, as the card says")
    return found


def limit(cls: type[Layer], card: Card) -> str:
    """The layer equals the other one where the card says so, or comes near it at the rate the card says."""
    claim = card.limit
    if claim is None:
        return "no limit declared"
    if "sweep" not in claim:
        error, tol = _distance(cls, card, noise=0.1), claim.get("tol", 1e-9)
        expect(error <= tol, f"distance to {claim['equals']}", f"{error:.2g}", f"at most {tol:g}")
        return f"equals {claim['equals']} to {error:.1g}"
    values = claim["values"]
    errors = [statistics.median(_distance(cls, card, scale=0.5, **{claim["sweep"]: v}) for _ in range(DRAWS)) for v in values]
    rate = -statistics.linear_regression([math.log(v) for v in values], [math.log(e) for e in errors]).slope
    found = f"{rate:.2f} (errors {', '.join(f'{e:.2g}' for e in errors)} at {claim['sweep']} {', '.join(map(str, values))})"
    near = abs(rate - claim["rate"]) <= RATE_TOLERANCE
    expect(near, f"rate of the error to {claim['equals']}", found, f"{claim['rate']} within {RATE_TOLERANCE}")
    return f"error falls at the rate {found}"


def _distance(cls: type[Layer], card: Card, noise: float = 0, scale: float = 1, **swept) -> float:
    """Relative distance of the layer's output at its limit to the other layer's, with the parameters they share by name.

    Rates show on inputs of a small `scale`: random features of large ones have tails too long for the number of features of a test.
    """
    claim, dim = card.limit, card.sizes["base"]["dim"]
    layer = _moved(cls(dim, **claim.get("options", {}), **swept), noise)
    for name, how in claim.get("set", {}).items():
        p = layer.get_parameter(name)
        nn.init.eye_(p) if how == "identity" else nn.init.constant_(p, {"zeros": 0, "ones": 1}.get(how, how))
    room = FFNS if claim["equals"] in FFNS.names() else LAYERS
    other = room.create(claim["equals"], dim, **claim.get("equals_options", {})).double().eval()
    known = other.state_dict().keys()
    other.load_state_dict({k: v for k, v in layer.state_dict().items() if k in known}, strict=False)
    x = scale * torch.randn(2, dim, *claim["grid"], dtype=torch.double)
    with torch.no_grad():
        y = other(x)
        return ((layer(x) - y).norm() / y.norm()).item()
