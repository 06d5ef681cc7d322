"""Local attention: what each query sees, at every size of map, the public layers with the same weights, and refusals."""

import importlib
import math
import re

import pytest
import torch
from timm.layers.halo_attn import HaloAttn
from timm.models.swin_transformer_v2 import WindowAttention
from torchvision.models.swin_transformer import ShiftedWindowAttentionV2

import layerzoo as lz
from layerzoo.ops import neighborhoods

LOCAL = ["cross_shaped_window", "focal_attention", "halo", "neighborhood_attention", "stand_alone_attention", "swin_v2_attention"]


def build(name, **options):
    layer = lz.create_layer(name, **{**lz.layer_card(name).sizes["tiny"], **options}).double().eval()
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return layer


def seen(layer, grid, mask=None):
    """(N, N) bool: query i depends on token j."""
    x = torch.randn(1, grid[0] * grid[1], layer.dim, dtype=torch.double, requires_grad=True)
    y = layer(x, mask=mask, grid=grid)
    return torch.stack([torch.autograd.grad(row.square().sum(), x, retain_graph=True)[0][0].any(-1) for row in y[0]])


@pytest.fixture(params=[2, 3, 8])
def shortest(request, monkeypatch):
    """Blocks of any side on maps small enough to ask every query."""
    monkeypatch.setattr(neighborhoods, "SHORTEST_SIDE", request.param)


def square(rows, columns):
    """(N, N) bool of pairs that (H, H) of rows and (W, W) of columns allow."""
    height, width = len(rows), len(columns)
    return (rows[:, None, :, None] & columns[None, :, None]).reshape(height * width, height * width)


def nearest(side, kernel, step=1, first=0, last=None):
    """(side, side) bool: the `kernel` places nearest to each of every step-th one in first, ..., last - 1, moved inside at an end."""
    pairs, last = torch.zeros(side, side, dtype=torch.bool), last or side
    for i in range(first, last):
        line = [p for p in range(first, last) if p % step == i % step]
        middle = min(max(i, line[kernel // 2]), line[-1 - kernel // 2]) if len(line) >= kernel else i
        pairs[i, sorted(line, key=lambda p: abs(p - middle))[:kernel]] = True
    return pairs


@pytest.mark.parametrize("kernel, step", [(1, 1), (3, 1), (5, 1), (7, 1), (3, 2), (5, 3), (13, 1), (3, 40)])
@pytest.mark.parametrize("grid", [(1, 1), (2, 15), (7, 6), (9, 13)])
def test_neighbourhoods_have_k_by_k_places_moved_inside(grid, kernel, step, shortest):
    layer = build("neighborhood_attention", dim=2, num_heads=1, kernel_size=kernel, dilation=step)
    expected = square(*(nearest(side, kernel, step) for side in grid))
    assert torch.equal(seen(layer, grid), expected)
    if step == 1:
        assert (expected.sum(1) == min(kernel, grid[0]) * min(kernel, grid[1])).all()


@pytest.mark.parametrize("kernel, step", [(3, 1), (7, 1), (3, 2)])
def test_masked_edges_are_outside_the_border(kernel, step, shortest):
    layer = build("neighborhood_attention", dim=2, num_heads=1, kernel_size=kernel, dilation=step)
    grid, real = (9, 8), torch.zeros(9, 8, dtype=torch.bool)
    real[2:8, 1:6] = True
    expected = square(nearest(9, kernel, step, 2, 8), nearest(8, kernel, step, 1, 6))
    assert torch.equal(seen(layer, grid, real.view(1, -1)), expected)


@pytest.mark.parametrize("kernel", [1, 3, 7, 13])
@pytest.mark.parametrize("grid", [(1, 1), (2, 15), (9, 13)])
def test_stand_alone_sees_the_square_around_it(grid, kernel, shortest):
    near = [(torch.arange(side)[:, None] - torch.arange(side)).abs() <= kernel // 2 for side in grid]
    assert torch.equal(seen(build("stand_alone_attention", kernel_size=kernel), grid), square(*near))


@pytest.mark.parametrize("name, size, margin", [("halo", "block_size", "halo_size"), ("focal_attention", "window_size", "expand")])
@pytest.mark.parametrize("side, halo", [(4, 1), (3, 0), (2, 5), (9, 9)])
def test_blocks_see_their_margin(name, size, margin, side, halo):
    grid, near = (7, 10), []
    for length in grid:
        place = torch.arange(length)
        first = place[:, None] // side * side
        near.append((place >= first - halo) & (place < first + side + halo))
    layer = build(name, **{size: side, margin: halo}, **({"focal_region": 0} if name == "focal_attention" else {}))
    assert torch.equal(seen(layer, grid), square(*near))


def test_focal_tokens_see_the_windows_around_theirs():
    layer, grid = build("focal_attention", window_size=2, expand=0, focal_region=3), (7, 10)
    windows = [torch.arange(side) // 2 for side in grid]
    assert torch.equal(seen(layer, grid), square(*((w[:, None] - w).abs() <= 1 for w in windows)))


def test_pooled_windows_start_as_means():
    layer = lz.create_layer("focal_attention", dim=8, window_size=3).double()
    places = torch.randn(2, 4, 9, 8, dtype=torch.double)
    for got, expected in zip(layer.pooled(places), layer.split(places.mean(2))[1:], strict=True):
        assert torch.allclose(got, expected, atol=1e-12)


def test_focal_without_surroundings_is_window_attention():
    layer = build("focal_attention", window_size=3, expand=0, focal_region=0)
    plain = lz.create_layer("window_attention", dim=8, num_heads=2, window_size=3)
    plain.double().load_state_dict(layer.state_dict())
    x, mask = torch.randn(2, 8, 7, 5, dtype=torch.double), torch.rand(2, 35) > 0.3
    assert torch.allclose(layer(x, mask), plain(x, mask), atol=1e-12)


@pytest.mark.parametrize("width, heads", [(1, 2), (2, 3), (3, 5), (20, 2)])
def test_stripes_are_rows_for_half_of_the_heads_and_columns_for_the_others(width, heads):
    layer, grid = build("cross_shaped_window", dim=2 * heads, num_heads=heads, stripe_width=width), (7, 10)
    rows, columns = (torch.arange(side) // width for side in grid)
    every = [torch.ones(side, side, dtype=torch.bool) for side in grid]
    by_row, by_column = square(rows[:, None] == rows, every[1]), square(every[0], columns[:, None] == columns)
    assert torch.equal(seen(layer, grid), by_row | by_column)
    with torch.no_grad():
        layer.proj.weight[:, 2 * -(-heads // 2):] = 0  # of the heads that see columns
    assert torch.equal(seen(layer, grid), by_row)


def test_stripes_of_a_narrow_layer_have_two_heads():
    assert [lz.create_layer("cross_shaped_window", dim=dim).num_heads for dim in (2, 9, 32, 64, 96)] == [2, 3, 2, 2, 3]


def test_cosines_do_not_know_the_length_of_queries_and_keys():
    layer, x = build("swin_v2_attention"), torch.randn(2, 8, 9, 6, dtype=torch.double)
    y = layer(x)
    with torch.no_grad():
        layer.qkv.weight[:16] *= 7
        layer.qkv.bias[:16] *= 7
    assert torch.allclose(layer(x), y, atol=1e-9)


def test_temperature_is_bounded():
    layer, x = build("swin_v2_attention"), torch.randn(2, 8, 9, 6, dtype=torch.double)
    outputs = []
    for t in (0.001, 0.01, 0.1):
        torch.nn.init.constant_(layer.log_scale, -math.log(t))
        outputs.append(layer(x))
    assert torch.allclose(outputs[0], outputs[1], atol=1e-6) and not torch.allclose(outputs[1], outputs[2], atol=1e-3)


def test_log_spaced_bias_goes_on_with_larger_windows():
    small = build("swin_v2_attention", window_size=4)
    large = build("swin_v2_attention", window_size=6, pretrained_window_size=4)
    large.load_state_dict(small.state_dict())
    bias = large.relative_bias.bias((6, 6)).unflatten(1, (6, 6)).unflatten(-1, (6, 6))[:, :4, :4, :4, :4]
    assert torch.allclose(bias.flatten(3).flatten(1, 2), small.relative_bias.bias((4, 4)), atol=1e-12)


@pytest.mark.parametrize("trained", [0, 6])
def test_swin_v2_equals_timm_with_its_weights(trained):
    layer = build("swin_v2_attention", dim=12, num_heads=3, window_size=4, pretrained_window_size=trained or None).float()
    public = WindowAttention(12, (4, 4), 3, pretrained_window_size=(trained, trained))
    for p in public.parameters():
        torch.nn.init.normal_(p, std=0.5)
    with torch.no_grad():
        layer.qkv.weight.copy_(public.qkv.weight)
        layer.qkv.bias.copy_(torch.cat([public.q_bias, public.k_bias, public.v_bias]))
        layer.log_scale.copy_(public.logit_scale)
    layer.proj.load_state_dict(public.proj.state_dict())
    layer.relative_bias.mlp.load_state_dict(public.cpb_mlp.state_dict())
    x = torch.randn(5, 16, 12)
    assert torch.allclose(layer(x, grid=(4, 4)), public(x), atol=1e-5)


@pytest.mark.parametrize("shift", [False, True])
def test_swin_v2_equals_torchvision_with_its_weights(shift):
    layer = build("swin_v2_attention", dim=12, num_heads=3, window_size=4, shift=shift).float()
    public = ShiftedWindowAttentionV2(12, [4, 4], [2 * shift, 2 * shift], 3)
    with torch.no_grad():
        layer.qkv.bias[12:24] = 0
        public.logit_scale.copy_(layer.log_scale)
    public.cpb_mlp.load_state_dict(layer.relative_bias.mlp.state_dict())
    public.qkv.load_state_dict(layer.qkv.state_dict())
    public.proj.load_state_dict(layer.proj.state_dict())
    x = torch.randn(2, 8, 12, 12)  # a map channel by channel at the end, as theirs are
    assert torch.allclose(layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), public(x), atol=1e-5)


def test_halo_equals_timm_with_its_weights_inside_the_map():
    layer, public = build("halo", dim=16, num_heads=2, block_size=4, halo_size=3, qkv_bias=True).float(), HaloAttn(
        16, num_heads=2, block_size=4, halo_size=3, qkv_bias=True)
    for p in public.parameters():
        torch.nn.init.normal_(p, std=0.3)
    heads = torch.arange(32).view(2, 2, 8).transpose(0, 1).flatten()  # theirs has each head's keys, then its values
    with torch.no_grad():
        for name in ("weight", "bias"):
            q, kv = (getattr(part, name).flatten(1) if name == "weight" else getattr(part, name) for part in (public.q, public.kv))
            getattr(layer.qkv, name).copy_(torch.cat([q, kv[heads]]))
        layer.relative_rows.copy_(public.pos_embed.height_rel[6:])  # theirs also has offsets that no block has
        layer.relative_columns.copy_(public.pos_embed.width_rel[6:])
        layer.proj.weight.copy_(torch.eye(16))
        layer.proj.bias.zero_()
    x = torch.randn(2, 16, 12, 16)
    inside = (..., slice(4, 8), slice(4, 12))  # theirs attends to zeros beyond the border
    y, expected = layer(x), public(x)
    assert torch.allclose(y[inside], expected[inside], atol=1e-5) and not torch.allclose(y, expected, atol=1e-2)


@pytest.mark.parametrize("name", LOCAL)
def test_awkward_maps_equal_the_twin(name, monkeypatch):
    monkeypatch.setattr(neighborhoods, "SHORTEST_SIDE", 2)
    twin = importlib.import_module(f"oracles.{name}").twin
    for grid, options in (((1, 7), {}), ((9, 2), {}), ((5, 9), {"shift": True} if "swin" in name else {})):
        layer = build(name, **options)
        x = torch.randn(1, grid[0] * grid[1], 8, dtype=torch.double)
        mask = torch.arange(x.shape[1])[None] % 3 != 1
        real = x * mask[..., None]
        assert torch.allclose(layer(real, mask, grid), twin(layer, real, grid, mask), atol=1e-12)


@pytest.mark.parametrize("name, options, message", [
    ("neighborhood_attention", {"kernel_size": 4}, "kernel_size: got 4, expected an odd whole number >= 1. Choose one such as 3, 5 or 7."),
    ("stand_alone_attention", {"kernel_size": 0}, "kernel_size: got 0, expected an odd whole number >= 1. Choose one such as 3, 5 or 7."),
    ("neighborhood_attention", {"dilation": 0}, "dilation: got 0, expected a whole number >= 1. Choose a small one such as 2."),
    ("stand_alone_attention", {"num_heads": 8},
     "num_heads: got 8, expected at most 4, so that a head has a channel for rows and one for columns. Choose fewer heads."),
    ("halo", {"block_size": 2.5}, "block_size: got 2.5, expected a whole number >= 1. Choose a small one such as 2."),
    ("halo", {"halo_size": -1}, "halo_size: got -1, expected a whole number >= 0 of positions around a block. The paper's is 3."),
    ("focal_attention", {"window_size": 0}, "window_size: got 0, expected a whole number >= 1. Choose a small one such as 2."),
    ("focal_attention", {"expand": -1}, "expand: got -1, expected a whole number >= 0 of positions around a window. The paper's is 3."),
    ("focal_attention", {"focal_region": 2}, "focal_region: got 2, expected an odd number of windows, or 0. The paper has 7, 5, 3 and 1."),
    ("focal_attention", {"focal_region": -1}, "focal_region: got -1, expected an odd number of windows, or 0."),
    ("cross_shaped_window", {"stripe_width": 0}, "stripe_width: got 0, expected a whole number >= 1. Choose a small one such as 2."),
    ("cross_shaped_window", {"num_heads": 1},
     "num_heads: got 1, expected two heads or more, for rows and for columns. Choose another divisor of dim."),
    ("swin_v2_attention", {"pretrained_window_size": 0},
     "pretrained_window_size: got 0, expected a whole number >= 1. Choose a small one such as 2."),
])
def test_refusals(name, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        lz.create_layer(name, dim=8, **options)
