"""Convolutions, windows and mixers: what they refuse, fusing, and windows at awkward sizes."""

import copy
import re

import pytest
import torch
from oracles import large_kernel_conv, mlp_mixer, window_attention

import layerzoo as lz


@pytest.mark.parametrize("name", ["conv", "depthwise_conv", "large_kernel_conv", "pooling"])
@pytest.mark.parametrize("kernel_size", [0, 4, -3, 3.0])
def test_even_kernels_are_refused(name, kernel_size):
    message = f"kernel_size: got {kernel_size!r}, expected an odd whole number >= 1. Choose one such as 3, 5 or 7."
    with pytest.raises(ValueError, match=re.escape(message)):
        lz.create_layer(name, dim=8, kernel_size=kernel_size)


def test_small_kernels_are_checked():
    message = "small_kernel_size: got 2, expected an odd whole number >= 1. Choose one such as 3, 5 or 7."
    with pytest.raises(ValueError, match=re.escape(message)):
        lz.create_layer("large_kernel_conv", dim=8, small_kernel_size=2)
    message = "small_kernel_size: got 5, expected at most kernel_size=3. Pass 0 for no small kernel."
    with pytest.raises(ValueError, match=re.escape(message)):
        lz.create_layer("large_kernel_conv", dim=8, kernel_size=3)


def test_window_size_is_checked():
    message = "window_size: got 0, expected a whole number >= 1. Pass the side of a window in positions."
    with pytest.raises(ValueError, match=re.escape(message)):
        lz.create_layer("window_attention", dim=8, window_size=0)


def test_hidden_dim_is_checked():
    message = "hidden_dim: got 0, expected a whole number >= 1, or None. None takes half of dim."
    with pytest.raises(ValueError, match=re.escape(message)):
        lz.create_layer("mlp_mixer", dim=8, grid=(2, 2), hidden_dim=0)


def test_fourier_refuses_a_mask_with_the_reason():
    message = "mask of Fourier: got a mask, expected none: every frequency is one of the whole sequence"
    with pytest.raises(ValueError, match=re.escape(message)):
        lz.create_layer("fourier", dim=8)(torch.zeros(1, 6, 8), mask=torch.ones(1, 6, dtype=torch.bool))


@pytest.mark.parametrize("options", [{}, {"kernel_size": 9, "small_kernel_size": 1}, {"kernel_size": 5, "bias": False}])
@pytest.mark.parametrize("grid", [(1, 1), (6, 17)])
def test_fused_is_the_same_function(options, grid):
    layer = lz.create_layer("large_kernel_conv", dim=6, **options).double().eval()
    x = torch.randn(2, 6, *grid, dtype=torch.double)
    y, slow = layer(x), large_kernel_conv.twin(layer, x)
    fused = copy.deepcopy(layer).fuse()
    assert torch.allclose(fused(x), y, rtol=0, atol=1e-14) and torch.allclose(y, slow, rtol=0, atol=1e-12)
    assert [type(m) for m in fused.children()] == [torch.nn.Conv2d] and fused.conv is not layer.conv
    assert torch.equal(fused.fuse()(x), fused(x))


def test_fused_weights_load_without_the_small_kernel():
    layer = lz.create_layer("large_kernel_conv", dim=6)
    x = torch.randn(1, 6, 8, 8)
    other = lz.create_layer("large_kernel_conv", dim=6, small_kernel_size=0)
    other.load_state_dict(layer.fuse().state_dict())
    assert torch.equal(other(x), layer(x))


def test_fused_kernels_still_train():
    layer = lz.create_layer("large_kernel_conv", dim=6).fuse()
    layer(torch.randn(1, 6, 8, 8)).sum().backward()
    assert layer.conv.weight.requires_grad and layer.conv.weight.grad.any()


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (3, 3), (4, 3), (5, 4), (6, 6), (7, 9), (8, 5)])
@pytest.mark.parametrize("masked", [False, True])
def test_windows_at_any_size(shift, grid, masked):
    layer = lz.create_layer("window_attention", dim=4, num_heads=2, window_size=3, shift=shift).double()
    torch.nn.init.normal_(layer.relative_bias.table)
    tokens = torch.randn(1, grid[0] * grid[1], 4, dtype=torch.double)
    mask = torch.arange(tokens.shape[1])[None] % 3 != 1 if masked else None
    assert torch.allclose(layer(tokens, mask=mask, grid=grid), window_attention.twin(layer, tokens, grid, mask), rtol=0, atol=1e-12)


def test_windows_reach_no_further():
    layer = lz.create_layer("window_attention", dim=4, window_size=4, shift=True)
    x = torch.randn(1, 4, 10, 10, requires_grad=True)
    for place, rows in ((0, range(2)), (2, range(2, 6)), (5, range(2, 6)), (9, range(6, 10))):
        (reach,) = torch.autograd.grad(layer(x)[0, :, place, place].sum(), x)
        seen = reach.abs().sum((0, 1)) > 0
        assert seen.nonzero().unique().tolist() == list(rows) and seen.sum() == len(rows) ** 2


def test_windows_do_not_make_all_scores():
    layer = lz.create_layer("window_attention", dim=8, window_size=4, shift=True)
    small, large = (lz.cost(layer, (1, 8, side, side)).activation_bytes for side in (32, 64))
    assert large < 4.5 * small


def test_mixer_keeps_its_scale_on_an_enlarged_map():
    layer = lz.create_layer("mlp_mixer", dim=6, grid=(4, 4)).double()
    for p in layer.parameters():
        torch.nn.init.constant_(p, 0.1)
    x = torch.ones(1, 6, 4, 4, dtype=torch.double)
    assert torch.allclose(layer(x.repeat(1, 1, 3, 2)), layer(x).repeat(1, 1, 3, 2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("grid", [(2, 3), (4, 2), (1, 1)])
def test_mixer_at_other_sizes(grid):
    layer = lz.create_layer("mlp_mixer", dim=4, grid=(2, 3)).double()
    tokens = torch.randn(2, grid[0] * grid[1], 4, dtype=torch.double)
    mask = torch.tensor([True, False] * 6)[: tokens.shape[1]].expand(2, -1)
    assert torch.allclose(layer(tokens, mask=mask, grid=grid), mlp_mixer.twin(layer, tokens, grid, mask), rtol=0, atol=1e-12)
