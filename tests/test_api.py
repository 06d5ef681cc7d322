"""Find, describe and create layers by name."""

import re

import pytest
import torch

import layerzoo as lz
from layerzoo.registry import LAYERS


def test_layers_are_listed_sorted_and_by_what_their_cards_say():
    names = lz.list_layers()
    assert names == sorted(names) and {"mhsa", "depthwise_conv", "pooling"} <= set(names)
    assert {"conv", "depthwise_conv", "large_kernel_conv"} <= set(lz.list_layers(family="conv")) and "mhsa" not in lz.list_layers(family="conv")
    for key in ("causal", "needs_grid"):
        yes, no = (lz.list_layers(**{key: value}) for value in (True, False))
        assert sorted(yes + no) == names and all(getattr(lz.layer_card(n), key) for n in yes)
    assert "identity" in lz.list_layers(causal=True) and lz.layer_card("identity").causal == "always"
    assert {"mhsa", "differential_attention"} <= set(lz.list_layers(family="attention", causal=True, needs_grid=False))


def test_unknown_families_are_refused():
    families = ", ".join(sorted({lz.layer_card(n).family for n in lz.list_layers()}))
    with pytest.raises(ValueError, match=re.escape(f"family: got 'convs', expected one of {families}. Leave it out to list every layer.")):
        lz.list_layers(family="convs")


def test_cards_are_described():
    card = lz.layer_card("mhsa")
    assert (card.name, card.family, card.paper, card.cost) == ("mhsa", "attention", "1706.03762", (2, 1))
    with pytest.raises(ValueError, match=re.escape("layers name: got 'nistrom', expected a known name such as ")):
        lz.layer_card("nistrom")


def test_layers_are_created():
    assert lz.create_layer("mhsa", dim=64, num_heads=4)(torch.randn(2, 64, 3, 5)).shape == (2, 64, 3, 5)
    assert lz.create_layer({"name": "mhsa", "num_heads": 8}, 64).num_heads == 8


def test_own_layers_are_registered_in_snake_case(monkeypatch):
    monkeypatch.setattr(LAYERS, "registered", {})

    @lz.register_layer
    class MeanGate(lz.Layer):
        card = lz.Card(title="Mine", paper="", year=2026, cost=(1, 1), sizes={})

        def mix(self, x):
            return x

    assert LAYERS.registered == {"mean_gate": MeanGate} and "mean_gate" in lz.list_layers()
    assert type(lz.create_layer("mean_gate", 8)) is MeanGate
