"""The kit itself: a layer of one's own passes, and for each check a layer that is wrong in that point fails it alone."""

import dataclasses
import re

import pytest
import torch
from good_layers import SIZES, Blur, Mean, Place, RunningSum
from torch import nn
from wrong_layers import WRONG

import layerzoo as lz
from layerzoo.registry import FFNS
from layerzoo.testing import CHECKS, ConformanceError, check_layer

SLOW = ("compile", "export")  # run on the layers that are wrong in them


@pytest.mark.parametrize("cls", [Mean, RunningSum, Blur, Place])
def test_a_class_of_ones_own_passes(cls):
    results = check_layer(cls)
    assert [r.name for r in results] == list(CHECKS)
    assert all(r.ok and r.detail and r.seconds >= 0 for r in results)


@pytest.mark.parametrize("cls, checks, message", WRONG)
def test_wrong_layers_fail_alone(cls, checks, message):
    names = [c for c in CHECKS if c in checks or c not in SLOW]
    with pytest.raises(ConformanceError) as refused:
        check_layer(cls, checks=names)
    failed = {r.name: r.detail for r in refused.value.results if not r.ok}
    assert set(failed) == set(checks), failed
    assert message in failed[checks[0]]


def test_every_check_has_a_wrong_layer():
    assert {p.values[1][0] for p in WRONG} == set(CHECKS)


class Near(lz.TokenLayer):
    """Tends to the identity as 1 / steps."""

    card = lz.Card(title="Near", paper="", year=2026, cost=(1, 1), symmetry="permutation", sizes=SIZES)

    def __init__(self, dim: int, *, steps: int = 4):
        super().__init__(dim)
        self.steps = steps

    def mix(self, tokens, grid, mask=None):
        return tokens * (1 + 1 / self.steps)


@pytest.mark.parametrize("rate, ok", [(1, True), (0.5, False), (1.5, False)])
def test_rates_are_measured(rate, ok):
    limit = {"equals": "identity", "grid": (3, 4), "sweep": "steps", "values": (4, 16, 64), "rate": rate}
    near = type("Tending", (Near,), {"card": dataclasses.replace(Near.card, limit=limit)})
    found = "1.00 (errors 0.25, 0.062, 0.016 at steps 4, 16, 64)"
    if ok:
        assert check_layer(near, checks=["limit"])[0].detail == f"error falls at the rate {found}"
    else:
        with pytest.raises(ConformanceError, match=re.escape(f"rate of the error to identity: got {found}, expected {rate} within 0.2")):
            check_layer(near, checks=["limit"])


def test_parameters_are_shared_and_set_at_the_limit():
    limit = {"equals": "conv_ffn", "options": {"mlp_ratio": 2}, "equals_options": {"mlp_ratio": 2}, "grid": (2, 3)}
    cls = type("Equal", (FFNS.find("conv_ffn"),), {})
    cls.card = dataclasses.replace(cls.card, limit=limit)
    assert check_layer(cls, checks=["limit"])[0].detail.startswith("equals conv_ffn to ")
    for values in ("zeros", "ones", 0.5):
        cls.card = dataclasses.replace(cls.card, limit=limit | {"equals": "mlp", "set": {"conv.weight": values}})
        with pytest.raises(ConformanceError, match="distance to mlp: got "):
            check_layer(cls, checks=["limit"])


def test_what_a_layer_cannot_do_is_proved():
    card = dataclasses.replace(Mean.card, cannot={"padding": "counts the padding"})
    mix = lambda self, tokens, grid, mask=None: tokens + tokens.mean(1, keepdim=True)
    (result,) = check_layer(type("Counts", (Mean,), {"card": card, "mix": mix}), checks=["padding"])
    found = "(1, 9) padded to (1, 12) and masked, size tiny, against unpadded: got "
    assert result.ok and result.detail.startswith(f"cannot: counts the padding ({found}")


def test_a_layer_that_takes_no_causal_may_say_why_or_that_it_needs_none():
    class Unordered(Mean):
        card = dataclasses.replace(Mean.card, cannot={"causal": "means are of all"})

    class Ordered(Mean):
        card = dataclasses.replace(Mean.card, causal="always")

    (result,) = check_layer(Unordered, checks=["causal"])
    assert result.detail == "cannot: means are of all (option causal: got not taken, expected taken)"
    with pytest.raises(ConformanceError, match="outputs before token 1 when it changes: got a difference of"):
        check_layer(Ordered, checks=["causal"])


def test_a_crash_proves_nothing_about_what_a_layer_cannot_do():
    def mix(self, tokens, grid, mask=None):
        return tokens + missing  # noqa: F821

    card = dataclasses.replace(Mean.card, cannot={"padding": "counts the padding"})
    with pytest.raises(ConformanceError, match="padding: NameError: name 'missing' is not defined"):
        check_layer(type("Crash", (Mean,), {"card": card, "mix": mix}), checks=["padding"])


def test_one_message_lists_every_failure():
    bad = type("Bad", (Mean,), {"card": dataclasses.replace(Mean.card, title="", symmetry="none")})
    with pytest.raises(ConformanceError) as refused:
        check_layer(bad, checks=["card", "shape", "symmetry"])
    assert str(refused.value) == (
        "Bad fails 2 of 3 checks:\n"
        "  card: card: got title '', differs 'nothing', expected both filled in\n"
        "  symmetry: symmetry: got permutation, expected none, as the card says")


def test_a_crash_is_told_with_its_place():
    def mix(self, tokens, grid, mask=None):
        return tokens @ tokens

    with pytest.raises(ConformanceError, match=r"shape: RuntimeError: .*test_kit\.py:\d+"):
        check_layer(type("Crashes", (Mean,), {"mix": mix}), checks=["shape"])


def test_the_callers_random_numbers_are_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    check_layer("identity", checks=["shape", "state"])
    assert torch.equal(torch.rand(4), expected)


def test_names_are_checked():
    with pytest.raises(ValueError, match=re.escape("check: got 'shapes', expected a known name such as shape, ")) as refused:
        check_layer("identity", checks=["shapes"])
    assert str(refused.value).endswith(". list(layerzoo.testing.CHECKS) lists all.")
    with pytest.raises(ValueError, match=re.escape("layers name: got 'mhsaa', expected a known name such as mhsa, ")):
        check_layer("mhsaa")


@pytest.mark.parametrize("given", [nn.Linear, 3, lz.TokenLayer, Mean(4)])
def test_only_layers_with_a_card_are_checked(given):
    message = f"layer: got {given!r}, expected a name, or a subclass of Layer with a card. Derive it from layerzoo.Layer or TokenLayer."
    with pytest.raises(ValueError, match=re.escape(message)):
        check_layer(given)
