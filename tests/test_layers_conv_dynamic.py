"""Convolutions that depend on the input: what they refuse, what they equal, and the sampling they share."""

import re

import pytest
import torch
from timm.layers import CondConv2d
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

import layerzoo as lz
from layerzoo.ops.sampling import kernel_points, sample

NAMES = ["dynamic_conv", "odconv", "involution", "deformable_conv", "deformable_conv_v3"]


def layer_and_map(name, grid=(5, 7), noise=0.3, **options):
    layer = lz.create_layer(name, **options).double()
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(noise * torch.randn_like(p))
    return layer, torch.randn(3, layer.dim, *grid, dtype=torch.double)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kernel_size", [0, 4, 3.0])
def test_even_kernels_are_refused(name, kernel_size):
    message = f"kernel_size: got {kernel_size!r}, expected an odd whole number >= 1. Choose one such as 3, 5 or 7."
    with pytest.raises(ValueError, match=re.escape(message)):
        lz.create_layer(name, dim=8, kernel_size=kernel_size)


REFUSED = [
    (("dynamic_conv", "odconv"), {"num_experts": 0},
     "num_experts: got 0, expected a whole number >= 1 of kernels. Choose one such as 4 or 8."),
    (("dynamic_conv", "odconv"), {"temperature": 0.0}, "temperature: got 0.0, expected a number > 0. Start at 30 and anneal to 1."),
    (("odconv",), {"reduction": 0}, "reduction: got 0, expected a number >= 1 to divide the channels by. The paper's is 16."),
    (("involution",), {"reduction": 0}, "reduction: got 0, expected a number >= 1, C over the channels between. The paper's is 4."),
    (("involution", "deformable_conv", "deformable_conv_v3"), {"num_groups": 3},
     "num_groups: got 3, expected a divisor of dim=8. Choose one of 1, 2, 4, 8."),
    (("involution", "deformable_conv", "deformable_conv_v3"), {"num_groups": 0},
     "num_groups: got 0, expected a divisor of dim=8. Choose one of 1, 2, 4, 8."),
]


@pytest.mark.parametrize("name, options, message", [(name, *rest) for names, *rest in REFUSED for name in names])
def test_options_are_refused(name, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        lz.create_layer(name, dim=8, **options)


@pytest.mark.parametrize("name", ["involution", "deformable_conv_v3"])
@pytest.mark.parametrize("dim, groups", [(8, 1), (64, 4), (40, 2), (51, 3), (31, 1)])
def test_groups_of_16_channels(name, dim, groups):
    assert lz.create_layer(name, dim=dim).num_groups == groups


def test_samples_at_positions_between_and_outside():
    x = torch.arange(12.0, dtype=torch.double).view(1, 1, 3, 4)
    points = torch.tensor([[0, 0], [2, 3], [1.5, 2], [0.25, 0.5], [-0.5, 1], [-1, 1], [2, 3.75], [1, 4], [9, -9]], dtype=torch.double)
    expected = torch.tensor([0, 11, 8, 1.5, 0.5, 0, 2.75, 0, 0], dtype=torch.double)
    torch.testing.assert_close(sample(x, points[None])[0, 0], expected)
    assert sample(x, points.view(1, 3, 3, 1, 2)).shape == (1, 1, 3, 3, 1)


def test_sampling_passes_gradcheck():
    x = torch.randn(2, 2, 3, 4, dtype=torch.double, requires_grad=True)
    points = (5 * torch.rand(2, 3, 2, 2, dtype=torch.double) - 1).requires_grad_()
    assert torch.autograd.gradcheck(sample, (x, points))


@pytest.mark.parametrize("grid", [(1, 1), (1, 300), (300, 2)])
def test_sampling_keeps_the_map_in_half_precision(grid):
    x = torch.randn(1, 3, *grid, dtype=torch.bfloat16)
    y = sample(x, kernel_points(torch.zeros(1, 1, *grid, 2, dtype=torch.bfloat16))[:, 0])
    torch.testing.assert_close(y, x)  # points of bfloat16 would miss positions beyond 256


@pytest.mark.parametrize("num_groups", [1, 2])
def test_deformable_conv_equals_that_of_torchvision(num_groups):
    layer, x = layer_and_map("deformable_conv", dim=8, num_groups=num_groups)
    expected = deform_conv2d(x, layer.offset(x), layer.conv.weight, layer.conv.bias, padding=1, mask=layer.modulation(x).sigmoid())
    torch.testing.assert_close(layer(x), expected)


def test_a_new_deformable_conv_is_half_a_conv():
    layer = lz.create_layer("deformable_conv", dim=8, kernel_size=5)
    x = torch.randn(2, 8, 5, 7)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.conv.weight / 2, layer.conv.bias, padding=2))


def test_without_offsets_v3_is_a_depthwise_conv_between_its_projections():
    layer, x = layer_and_map("deformable_conv_v3", dim=8, num_groups=2)
    for p in (*layer.offset.parameters(), layer.modulation.weight):
        torch.nn.init.zeros_(p)
    kernel = layer.modulation.bias.view(2, 9).softmax(-1).repeat_interleave(4, 0).view(8, 1, 3, 3)
    value = layer.value(x.movedim(1, -1)).movedim(-1, 1)
    expected = layer.proj(F.conv2d(value, kernel, padding=1, groups=8).movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(layer(x), expected)


def test_a_new_v3_averages_the_neighbourhood():
    layer = lz.create_layer("deformable_conv_v3", dim=32)
    x = torch.randn(2, 32, 5, 7)
    value = layer.value(x.movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(layer(x), layer.proj(F.avg_pool2d(value, 3, 1, 1).movedim(1, -1)).movedim(-1, 1))


def test_dynamic_conv_equals_that_of_timm():
    layer, x = layer_and_map("dynamic_conv", dim=6, num_experts=4)
    peer = CondConv2d(6, 6, 3, padding=1, bias=True, num_experts=4).double()
    peer.load_state_dict({"weight": layer.conv.weight.view(4, -1), "bias": layer.conv.bias.view(4, -1)})
    torch.testing.assert_close(layer(x), peer(x, layer.route(x.mean((2, 3))).sigmoid()))


def test_a_high_temperature_takes_the_mean_of_the_kernels():
    layer, x = layer_and_map("dynamic_conv", dim=6, num_experts=4, temperature=1e12)
    mean, bias = layer.conv.weight.view(4, 6, 6, 3, 3).mean(0), layer.conv.bias.view(4, 6).mean(0)
    torch.testing.assert_close(layer(x), F.conv2d(x, mean, bias, padding=1))
    layer.temperature = 1e-6  # and a low one a single kernel for each sample
    route = layer.route(x.mean((2, 3))).argmax(-1)
    kernels, biases = layer.conv.weight.view(4, 6, 6, 3, 3), layer.conv.bias.view(4, 6)
    chosen = [F.conv2d(x[i: i + 1], kernels[e], biases[e], padding=1) for i, e in enumerate(route)]
    torch.testing.assert_close(layer(x), torch.cat(chosen))


def test_odconv_at_a_high_temperature_is_an_eighth_of_the_mean_kernel():
    layer, x = layer_and_map("odconv", dim=6, num_experts=3, temperature=1e12)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.conv.weight.view(3, 6, 6, 3, 3).mean(0) / 8, padding=1))


def test_involution_with_the_same_kernel_everywhere_is_a_depthwise_conv():
    layer, x = layer_and_map("involution", dim=8, kernel_size=5, num_groups=2)
    torch.nn.init.zeros_(layer.span.weight)
    kernel = layer.span.bias.view(2, 5, 5).repeat_interleave(4, 0)
    torch.testing.assert_close(layer(x), F.conv2d(x, kernel[:, None], padding=2, groups=8))


def test_involution_makes_no_patches():
    layer = lz.create_layer("involution", dim=64, kernel_size=7)
    maps = lz.cost(layer, (1, 64, 32, 32)).activation_bytes / (4 * 64 * 32 * 32)
    assert maps < 12  # the kernels of 4 groups are 3 maps; 49 shifted maps would be patches
