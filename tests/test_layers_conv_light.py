"""Light convolutions and the anti-aliased stride: ports of public weights, fusing, claims of each method, refusals."""

import re

import pytest
import torch
from oracles import recursive_gated_conv
from torch import nn
from torch.nn import functional as F

import layerzoo as lz
from layerzoo.downsample.blur_pool import BlurPool
from layerzoo.registry import DOWNSAMPLES


def drawn(module):
    """Every parameter and running statistic moved, in float64 and eval mode."""
    module = module.double().eval()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn_like(p))
        for m in module.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.normal_()
                m.running_var.uniform_(0.5, 2)
    return module


def ported(layer, peer, names):
    """The peer's weights in the layer, under the layer's names; none is left over on either side."""
    given = peer.state_dict().items()
    state = {ours + k.removeprefix(theirs): v for theirs, ours in names.items() for k, v in given if k.startswith(theirs)}
    assert len(state) == len(peer.state_dict())
    layer.double().eval().load_state_dict(state)
    return layer


def image(dim, *grid):
    return torch.randn(2, dim, *grid or (7, 6), dtype=torch.double)


def same(a, b, tol=1e-12):
    return torch.allclose(a, b, rtol=0, atol=tol)


def test_partial_conv_with_timm_s_weights():
    peer = drawn(pytest.importorskip("timm.models.fasternet").Partial_conv3(18, 4, "split_cat"))
    layer, x = ported(lz.create_layer("partial_conv", dim=18), peer, {"partial_conv3.": "conv."}), image(18)
    assert same(layer(x), peer(x))


def test_ghost_conv_with_timm_s_weights():
    """Its norms at their start are scales of 1 / sqrt(1 + eps), which go into the weights."""
    peer = pytest.importorskip("timm.models.ghostnet").GhostModule(9, 9, act_layer=nn.Identity).double().eval()
    layer, x = lz.create_layer("ghost_conv", dim=9, bias=False).double(), image(9)
    with torch.no_grad():
        layer.conv.weight.copy_(peer.primary_conv[0].weight / (1 + 1e-5) ** 0.5)
        layer.ghost.weight.copy_(peer.cheap_operation[0].weight / (1 + 1e-5) ** 0.5)
    assert same(layer(x), peer(x))


def test_inception_dw_with_timm_s_weights():
    peer = drawn(pytest.importorskip("timm.models.inception_next").InceptionDWConv2d(20))
    names = {"dwconv_hw.": "square.", "dwconv_w.": "row.", "dwconv_h.": "column."}
    layer, x = ported(lz.create_layer("inception_dw", dim=20), peer, names), image(20)
    assert same(layer(x), peer(x))


def test_repvgg_conv_with_timm_s_weights():
    peer = drawn(pytest.importorskip("timm.models.byobnet").RepVggBlock(6, 6))
    names = {"conv_kxk.conv.": "conv.", "conv_kxk.bn.": "norm.", "conv_1x1.conv.": "point.", "conv_1x1.bn.": "point_norm.",
             "identity.": "identity_norm."}
    layer, x = ported(lz.create_layer("repvgg_conv", dim=6), peer, names), image(6)
    assert same(layer(x).relu(), peer(x))
    peer.reparameterize()
    assert same(layer.fuse().conv.weight, peer.reparam_conv.weight) and same(layer.fuse().conv.bias, peer.reparam_conv.bias)


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_blur_pool_is_timm_s_inside_the_map(kernel_size):
    peer, x = pytest.importorskip("timm.layers").BlurPool2d(8, kernel_size).double(), image(8)
    y = BlurPool(8, 8, before="none", kernel_size=kernel_size).double()(x)
    assert same(y[..., 1:-1, 1:-1], peer(x)[..., 1:-1, 1:-1]) and not same(y, peer(x), 1e-3)


@pytest.mark.parametrize("grid", [(1, 1), (7, 6), (4, 5)])
def test_blur_pool_of_two_places_is_mean_pooling(grid):
    x = image(4, *grid)
    assert same(BlurPool(4, 4, before="none", kernel_size=2).double()(x), F.avg_pool2d(x, 2, ceil_mode=True))


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("grid", [(1, 1), (5, 4)])
def test_fused_repvgg_is_the_layer_conv_of_the_same_function(kernel_size, grid):
    layer, x = drawn(lz.create_layer("repvgg_conv", dim=6, kernel_size=kernel_size)), image(6, *grid)
    y, fused = layer(x), layer.fuse()
    assert type(fused) is type(lz.create_layer("conv", dim=6)) and [type(m) for m in fused.children()] == [nn.Conv2d]
    assert same(fused(x), y) and same(layer(x), y, 0), "and the layer stays as it was"
    assert not fused.training and fused.conv.weight.requires_grad and fused.conv.weight.dtype == torch.double
    other = lz.create_layer("conv", dim=6, kernel_size=kernel_size).double()
    other.load_state_dict(fused.state_dict())
    assert same(other(x), y)


def test_repvgg_norms_by_the_batch_in_training_and_fuses_what_it_learned():
    layer, x = lz.create_layer("repvgg_conv", dim=4).double().train(), 3 + image(4)
    y = layer(x)
    assert same(y.mean((0, 2, 3)), torch.zeros(4, dtype=torch.double)), "three branches, each of mean zero"
    assert not same(layer.fuse()(x), y, 1e-3) and layer.fuse().training and same(layer.fuse()(x), layer.eval()(x))


@pytest.mark.parametrize("name, left", [("partial_conv", [48, 48, 48, 48]), ("pconv_shuffle", [48, 36, 27, 27])])
def test_how_many_channels_layers_in_a_row_leave_alone(name, left):
    layer, x, counts = lz.create_layer(name, dim=64), torch.ones(1, 64, 1, 1), []
    nn.init.zeros_(layer.conv.weight)
    for _ in left:
        x = layer(x)
        counts.append(int(x.sum()))
    assert counts == left


@pytest.mark.parametrize("dim, parts", [(8, 4), (9, 3), (10, 2), (5, 1), (1, 1), (12, 6)])
def test_the_shuffle_is_torch_s(dim, parts):
    layer, x = lz.create_layer("pconv_shuffle", dim=dim, **({"num_parts": 6} if parts == 6 else {})).double(), image(dim)
    plain = lz.create_layer("partial_conv", dim=dim, num_parts=parts).double()
    plain.load_state_dict(layer.state_dict())
    assert layer.num_parts == parts and same(layer(x), F.channel_shuffle(plain(x), parts), 0)


@pytest.mark.parametrize("name", ["partial_conv", "pconv_shuffle", "inception_dw", "octave_conv", "shift", "coord_conv"])
def test_channels_last_in_and_out(name):
    layer = lz.create_layer(name, dim=12).to(memory_format=torch.channels_last)
    x = torch.randn(2, 12, 5, 7).to(memory_format=torch.channels_last)
    assert layer(x).is_contiguous(memory_format=torch.channels_last)


def test_octaves_passed_on_lose_nothing():
    """The second layer pools its coarse channels to just what the first one repeated, so the small map need not be handed on."""
    layer, x = lz.create_layer("octave_conv", dim=8, alpha=0.5).double(), image(8, 5, 3)
    coarse = layer(x)[:, 4:]
    pooled = F.avg_pool2d(coarse, 2, ceil_mode=True)
    assert pooled.shape[2:] == (3, 2) and same(pooled.repeat_interleave(2, 2).repeat_interleave(2, 3)[..., :5, :3], coarse)


@pytest.mark.parametrize("alpha", [0.125, 0.25, 0.5, 0.75])
def test_octaves_save_what_the_paper_says(alpha):
    layers = lz.create_layer("octave_conv", dim=16, alpha=alpha), lz.create_layer("conv", dim=16)
    octave, plain = (lz.cost(layer, (1, 16, 8, 8)) for layer in layers)
    assert octave.params == plain.params
    pooling = 16 * 8 * 8
    assert (octave.flops - pooling) / plain.flops == pytest.approx(1 - 0.75 * alpha * (2 - alpha))


def test_shift_is_a_convolution_with_a_single_one_in_each_kernel():
    layer, x = lz.create_layer("shift", dim=20).double(), image(20)
    kernels = torch.zeros(20, 1, 3, 3, dtype=torch.double)
    for c, (u, v) in enumerate(o for o, count in zip(layer.offsets, layer.split) for _ in range(count)):
        kernels[c, 0, 1 + u, 1 + v] = 1
    assert kernels.sum((0, 1)).tolist() == [[2, 3, 2], [2, 3, 2], [2, 2, 2]]
    assert same(layer(x), layer.conv(F.conv2d(x, kernels, padding=1, groups=20)))
    assert sum(p.numel() for p in layer.parameters()) == 20 * 20 + 20


def test_shift_with_few_channels_still_moves_them():
    assert lz.create_layer("shift", dim=3).offsets == [(0, 0), (-1, 0), (0, -1)]


def test_coord_conv_learns_where_it_is():
    """One kernel of 1x1 gives the coordinates themselves, at any size; a convolution gives the same at all places."""
    layer = lz.create_layer("coord_conv", dim=3, kernel_size=1, radius=True, bias=False).double()
    nn.init.eye_(layer.coordinates.weight.data[..., 0, 0])
    i, j, r = layer(torch.zeros(1, 3, 3, 5, dtype=torch.double))[0]
    assert i[:, 2].tolist() == [-1, 0, 1] and j[1].tolist() == [-1, -0.5, 0, 0.5, 1]
    assert r[1, 2] == 0 and r[0, 0].item() == pytest.approx(2**0.5)
    assert not layer(torch.zeros(1, 3, 1, 1, dtype=torch.double)).any()


def test_coordinates_are_convolved_once_for_all_samples():
    flops = [lz.cost(lz.create_layer(name, dim=8), (4, 8, 6, 6)).flops for name in ("coord_conv", "conv")]
    assert flops[0] - flops[1] == 2 * 36 * 2 * 8 * 9


@pytest.mark.parametrize("order", [1, 2, 4])
def test_gnconv_is_of_degree_order_plus_one(order):
    layer, x = lz.create_layer("recursive_gated_conv", dim=9, order=order, kernel_size=3, bias=False).double(), image(9, 3, 4)
    assert torch.allclose(layer(2 * x), 2 ** (order + 1) * layer(x), rtol=1e-10)
    assert same(layer(x), recursive_gated_conv.twin(layer, x))


def test_gnconv_costs_at_most_the_bound_of_the_paper():
    for order in (1, 3, 5):
        layer = lz.create_layer("recursive_gated_conv", dim=32, order=order, bias=False)
        assert lz.cost(layer, (1, 32, 8, 8)).flops <= 2 * 64 * 32 * (2 * 49 + 11 / 3 * 32)


def test_the_finest_pattern_is_blurred_away_where_a_stride_keeps_it():
    x = torch.ones(1, 4, 8, 8)
    x[..., 1::2] = -1
    blurred, strided = (BlurPool(4, 4, before="none", kernel_size=k)(x) for k in (3, 1))
    assert not blurred[..., 1:].any() and torch.equal(strided, torch.ones(1, 4, 4, 4))
    assert same(BlurPool(4, 4, before="none", kernel_size=5)(torch.ones(1, 4, 5, 3)), torch.ones(1, 4, 3, 2), 1e-6)


def test_blur_pool_without_blur_is_the_strided_convolution():
    plain, layer = DOWNSAMPLES.create("conv_stride", 4, 6, norm="none").double(), BlurPool(4, 6, kernel_size=1).double()
    layer.conv.load_state_dict(plain.conv.state_dict())
    for grid in ((1, 1), (7, 6)):
        x = image(4, *grid)
        assert same(layer(x), plain(x).relu())
    assert same(BlurPool(4, 4, before="max", kernel_size=1).double()(x), F.max_pool2d(x, 3, 2, 1), 0)


@pytest.mark.parametrize("name, options, message", [
    ("partial_conv", {"num_parts": 0}, "num_parts: got 0, expected 1 to dim=8 parts of the channels. The paper has 4; 1 convolves all."),
    ("partial_conv", {"num_parts": 9}, "num_parts: got 9, expected 1 to dim=8 parts of the channels."),
    ("pconv_shuffle", {"num_parts": 3}, "num_parts: got 3, expected a divisor of dim=8, for parts of one size. Choose one of 1, 2, 4, 8."),
    ("pconv_shuffle", {"num_parts": 0}, "num_parts: got 0, expected a divisor of dim=8, for parts of one size."),
    ("ghost_conv", {"ratio": 0}, "ratio: got 0, expected 1 to dim=8 channels out per computed one. The paper has 2; 1 is without ghosts."),
    ("octave_conv", {"alpha": 1.0}, "alpha: got 1.0, expected a share of the channels from 0 to below 1. The paper's are 0.125 to 0.75."),
    ("octave_conv", {"alpha": -0.1}, "alpha: got -0.1, expected a share of the channels from 0 to below 1."),
    ("inception_dw", {"dim": 2}, "dim of InceptionDW: got 2, expected at least 3, one for each branch. Pass more channels."),
    ("inception_dw", {"branch_ratio": 0.4},
     "branch_ratio: got 0.4, expected above 0 and at most 1/3, as there are three branches. The paper has 0.125."),
    ("inception_dw", {"branch_ratio": 0}, "branch_ratio: got 0, expected above 0 and at most 1/3, as there are three branches."),
    ("recursive_gated_conv", {"order": 0}, "order: got 0, expected 1 to 4, so that halves of dim=8 remain. The paper has 2 to 5."),
    ("recursive_gated_conv", {"order": 5}, "order: got 5, expected 1 to 4, so that halves of dim=8 remain."),
])
def test_refusals(name, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        lz.create_layer(name, **{"dim": 8, **options})


@pytest.mark.parametrize("name, option", [
    ("partial_conv", "kernel_size"), ("pconv_shuffle", "kernel_size"), ("ghost_conv", "kernel_size"), ("ghost_conv", "ghost_kernel_size"),
    ("octave_conv", "kernel_size"), ("repvgg_conv", "kernel_size"), ("inception_dw", "square_kernel_size"),
    ("inception_dw", "band_kernel_size"), ("shift", "kernel_size"), ("coord_conv", "kernel_size"), ("recursive_gated_conv", "kernel_size")])
def test_even_kernels_are_refused(name, option):
    with pytest.raises(ValueError, match=re.escape(f"{option}: got 4, expected an odd whole number >= 1. Choose one such as 3, 5 or 7.")):
        lz.create_layer(name, dim=8, **{option: 4})


def test_blur_pool_checks_its_options():
    message = "kernel_size: got 0, expected a whole number of positions >= 1. The paper has 2, 3 and 5; 1 is no blur."
    with pytest.raises(ValueError, match=re.escape(message)):
        BlurPool(4, 4, kernel_size=0)
    with pytest.raises(ValueError, match=re.escape("before: got 'mean', expected one of conv, max, none. Choose one of these.")):
        BlurPool(4, 4, before="mean")
