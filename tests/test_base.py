"""What the contract's base classes refuse, word by word, and what they give."""

import re

import pytest
import torch

import layerzoo as lz
from layerzoo.downsample.base import Downsample
from layerzoo.layers.base import check_choice, check_grid, check_heads, check_odd, map_to_tokens, tokens_to_map
from layerzoo.positions.base import Position


def refused(message, call, *args, error=ValueError, **options):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        call(*args, **options)


@pytest.mark.parametrize("dim", [0, -1, 2.0, "8", None])
def test_dim_is_checked(dim):
    refused(f"dim: got {dim!r}, expected a whole number >= 1. Pass the channels of the map.", lz.create_layer, "identity", dim=dim)


@pytest.mark.parametrize("shape", [(2, 5, 4, 4), (2, 8, 4), (8, 4, 4), (2, 8)])
def test_maps_are_checked(shape):
    message = f"input of Conv: got {shape}, expected a map (B, 8, H, W). Check dim= and the layout."
    refused(message, lz.create_layer("conv", dim=8), torch.zeros(shape))


@pytest.mark.parametrize("shape", [(2, 5, 4, 4), (2, 8, 4), (2, 8, 4, 4, 4), (3, 1)])
def test_tokens_are_checked(shape):
    message = f"input of Identity: got {shape}, expected a map (B, 8, H, W) or tokens (B, N, 8). Check dim= and the layout."
    refused(message, lz.create_layer("identity", dim=8), torch.zeros(shape))


def test_grids_of_tokens_are_checked():
    layer, tokens = lz.create_layer("axial_attention", dim=8), torch.zeros(1, 12, 8)
    for grid in (None, (3, 5)):
        message = (
            f"grid of AxialAttention: got {grid} for 12 tokens, expected (H, W) with H * W = number of tokens. "
            "Pass grid=(H, W), or the map (B, C, H, W) itself.")
        refused(message, layer, tokens, grid=grid)
    refused(message.replace("AxialAttention", "MHSA"), lz.create_layer("mhsa", dim=8), tokens, grid=(3, 5))


def test_tokens_of_the_built_grid_need_no_grid():
    layer, tokens = lz.create_layer("mlp_mixer", dim=8, grid=(3, 4)), torch.randn(1, 12, 8)
    assert torch.equal(layer(tokens), layer(tokens, grid=(3, 4)))
    assert not torch.allclose(layer(tokens), layer(tokens, grid=(4, 3)))


@pytest.mark.parametrize("mask, got", [
    (torch.ones(2, 12), "torch.float32 (2, 12)"), (torch.ones(2, 12, dtype=torch.int64), "torch.int64 (2, 12)"),
    (torch.ones(12, dtype=torch.bool), "torch.bool (12,)"), (torch.ones(2, 11, dtype=torch.bool), "torch.bool (2, 11)")])
def test_masks_are_checked(mask, got):
    message = (
        f"mask of Identity: got {got}, expected torch.bool (2, 12), True = real token. "
        "Build it as lengths[:, None] > torch.arange(N).")
    refused(message, lz.create_layer("identity", dim=8), torch.zeros(2, 12, 8), mask=mask)
    refused(message, lz.create_layer("identity", dim=8), torch.zeros(2, 8, 3, 4), mask=mask)


def test_masks_are_refused_where_the_card_says_so():
    reason = lz.layer_card("fourier").cannot["mask"]
    message = f"mask of Fourier: got a mask, expected none: {reason}. Drop mask=, or choose a layer whose card says mask."
    refused(message, lz.create_layer("fourier", dim=8), torch.zeros(1, 6, 8), mask=torch.ones(1, 6, dtype=torch.bool))


@pytest.mark.parametrize("base, message", [
    (lz.Layer, "Empty must define mix(); see layerzoo/layers/conv for examples"),
    (lz.TokenLayer, "Empty must define mix(); see layerzoo/layers/attention for examples"),
    (Downsample, "Empty must define reduce(); see layerzoo/downsample for examples")])
def test_formulas_must_be_written(base, message):
    card = lz.Card(title="Empty", paper="", year=2026, cost=(1, 1), sizes={})
    layer = type("Empty", (base,), {"card": card})(8, *((16,) if base is Downsample else ()))
    refused(message, layer, torch.zeros(1, 8, 2, 2), error=NotImplementedError)


def test_positions_inside_attention_are_not_called():
    position = type("Turning", (Position,), {"kind": "rotary"})()
    message = "Turning is of kind 'rotary' and is applied inside attention layers"
    refused(message, position, torch.zeros(1, 8, 2, 2), error=NotImplementedError)


@pytest.mark.parametrize("dim, heads", [(8, 1), (31, 1), (64, 2), (96, 3), (100, 2), (192, 6), (17, 1), (70, 2)])
def test_default_heads_divide_dim(dim, heads):
    assert check_heads(dim, None) == heads


@pytest.mark.parametrize("num_heads", [5, 0, -2, 24])
def test_heads_are_checked(num_heads):
    refused(f"num_heads: got {num_heads}, expected a divisor of dim=12. Choose one of 1, 2, 3, 4, 6, 12.", check_heads, 12, num_heads)


def test_choices_are_checked():
    message = "normalize: got 'max', expected one of softmax, relu, relu_squared, relu_sum, sigmoid, entmax, none. Choose one of these."
    refused(message, lz.create_layer, "mhsa", dim=8, normalize="max")
    assert check_choice("normalize", "relu", ("softmax", "relu")) is None


@pytest.mark.parametrize("got", [0, 2, -1, 3.0, "3", None])
def test_odd_sides_are_checked(got):
    refused(f"side: got {got!r}, expected an odd whole number >= 1. Choose one such as 3, 5 or 7.", check_odd, "side", got)


@pytest.mark.parametrize("grid", [None, (3,), (3, 0), (1, 2, 3), [0, 1]])
def test_built_grids_are_checked(grid):
    refused(f"grid: got {grid}, expected (H, W), both >= 1. Pass the height and width of the map the layer is built for.", check_grid, grid)


def test_grids_become_tuples():
    assert check_grid([3, 4]) == (3, 4)


def test_maps_and_tokens_are_views_of_each_other():
    x = torch.randn(2, 8, 3, 4).to(memory_format=torch.channels_last)
    tokens = map_to_tokens(x)
    assert tokens.data_ptr() == x.data_ptr() and torch.equal(tokens[1, 4 * 2 + 3], x[1, :, 2, 3])
    back = tokens_to_map(tokens, x)
    assert back.data_ptr() == x.data_ptr() and torch.equal(back, x)
    assert tokens_to_map(tokens, x.contiguous()).is_contiguous()
