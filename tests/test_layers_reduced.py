"""Attention with reduced, routed, sampled and subtracted keys: timm's with the same weights, every option, limits, refusals."""

import dataclasses
import importlib
import math
import re
from functools import partial

import pytest
import torch
from oracles import spatial_reduction as oracle
from torch import nn
from torch.nn import functional as F

import layerzoo as lz
from layerzoo.layers.attention.deformable_attention import DeformableAttention
from layerzoo.layers.attention.spatial_reduction import SpatialReduction
from layerzoo.ops.token_maps import join_places
from layerzoo.ops.windows import blocks_2d
from layerzoo.testing import check_layer


def timm(module, name, *args, **options):
    """A module of timm with random weights, in float64."""
    peer = getattr(importlib.import_module(f"timm.{module}"), name)(*args, **options).double().eval()
    for p in peer.parameters():
        nn.init.normal_(p, std=0.5)
    return peer


def layer_with(name, weights, **options):
    """A layer of 16 channels in 4 heads (2 of them if differential) with these weights, all of them."""
    layer = lz.create_layer(name, **{"dim": 16, "num_heads": 4, **options}).double().eval()
    layer.load_state_dict(weights)
    return layer


def joint(peer):
    """The weights of a reduced attention of timm under the names of ours."""
    own = peer.state_dict()
    weights = {f"qkv.{kind}": torch.cat([own[f"q.{kind}"], own[f"kv.{kind}"]]) for kind in ("weight", "bias")}
    return weights | {k.replace("sr.", "conv."): v for k, v in own.items() if k.split(".")[0] in ("sr", "norm", "proj")}


def tokens_of(*grid, dim=16):
    return torch.randn(2, grid[0] * grid[1], dim, dtype=torch.double)


@pytest.mark.parametrize("timms, ours", [
    ({"sr_ratio": 2}, {"reduction": 2}), ({"sr_ratio": 1}, {"reduction": 1}), ({"linear_attn": True}, {"pool_size": 7})])
def test_spatial_reduction_equals_that_of_timm(timms, ours):
    peer, x = timm("models.pvt_v2", "Attention", 16, num_heads=4, **timms), tokens_of(8, 6)
    torch.testing.assert_close(layer_with("spatial_reduction", joint(peer), **ours)(x, grid=(8, 6)), peer(x, (8, 6)))


def test_both_parts_of_twins_equal_those_of_timm():
    near = timm("models.twins", "LocallyGroupedAttn", 16, num_heads=4, ws=3)
    far = timm("models.twins", "GlobalSubSampleAttn", 16, num_heads=4, sr_ratio=2)
    x, grid = tokens_of(6, 12), (6, 12)
    weights = {f"near.{k}": v for k, v in near.state_dict().items()}, {f"far.{k}": v for k, v in joint(far).items()}
    options = {"window_size": 3, "reduction": 2}
    y = near(x, grid)
    torch.testing.assert_close(layer_with("twins", weights[0], kind="local", **options)(x, grid=grid), y)
    torch.testing.assert_close(layer_with("twins", weights[1], kind="global", **options)(x, grid=grid), far(x, grid))
    torch.testing.assert_close(layer_with("twins", weights[0] | weights[1], **options)(x, grid=grid), y + far(x + y, grid))


@pytest.mark.parametrize("stride, residual", [(2, True), (4, False)])
def test_multi_scale_equals_that_of_timm(stride, residual):
    options = {"kernel_q": (3, 3), "kernel_kv": (3, 3), "stride_kv": (stride, stride), "has_cls_token": False, "residual_pooling": residual,
               "norm_layer": partial(nn.LayerNorm, eps=1e-6)}
    peer, x = timm("models.mvitv2", "MultiScaleAttention", 16, 16, (8, 8), num_heads=4, **options), tokens_of(8, 8)
    own = peer.state_dict()
    weights = {k: own[k] for k in ("qkv.weight", "qkv.bias", "proj.weight", "proj.bias")}
    for i, part in enumerate("qkv"):
        weights |= {f"attention.pools.{i}.conv.weight": own[f"pool_{part}.weight"]}
        weights |= {f"attention.pools.{i}.norm.{kind}": own[f"norm_{part}.{kind}"] for kind in ("weight", "bias")}
    # there the table starts at the offset of the first place to the last cell, here at that of the first place to the last place
    weights |= {f"attention.{axis}_table": own[f"rel_pos_{axis[0].replace('r', 'h').replace('c', 'w')}"].roll(stride - 1, 0) for axis in ("row", "column")}
    layer = layer_with("multi_scale", weights, stride=stride, reach=7, residual_query=residual)
    torch.testing.assert_close(layer(x, grid=(8, 8)), peer(x, (8, 8))[0])


@pytest.mark.parametrize("causal", [False, True])
def test_differential_attention_equals_that_of_timm(causal):
    peer, x = timm("layers.diff_attention", "DiffAttention", 16, num_heads=2, depth=3, qkv_bias=True), tokens_of(3, 5)
    own = peer.state_dict()
    weights = {k: own[k] for k in ("qkv.weight", "qkv.bias", "proj.weight", "proj.bias")} | {"norm.weight": own["sub_norm.weight"]}
    weights["lambda_vectors"] = torch.stack([torch.stack([own[f"lambda_{part}{i}"] for part in "qk"]) for i in (1, 2)])
    layer = layer_with("differential_attention", weights, num_heads=2, qkv_bias=True, lambda_init=peer.lambda_init, causal=causal)
    torch.testing.assert_close(layer(x), peer(x, is_causal=causal), rtol=1e-5, atol=1e-5)  # it makes lambda in float32


class Pooled(SpatialReduction):
    """The linear form."""

    card = dataclasses.replace(
        SpatialReduction.card, cost=(1, 1), limit=None, cannot={"padding": "cells cover the grid, and padding makes another grid"},
        sizes={name: {**size, "pool_size": 3} for name, size in SpatialReduction.card.sizes.items()})


class Biased(DeformableAttention):
    """With a relative bias, whose scores are made."""

    card = dataclasses.replace(
        DeformableAttention.card, limit=None,
        sizes={name: {**size, "reach": 3} for name, size in DeformableAttention.card.sizes.items()})


@pytest.mark.parametrize("layer, checks", [
    (Pooled, ["shape", "format", "strides", "batch", "mask", "padding", "state", "gradients", "autocast", "meta", "cost"]),
    (Biased, ["format", "gradients", "autocast", "meta"])])
def test_other_forms_pass_the_kit(layer, checks):
    check_layer(layer, checks=checks)


@pytest.mark.parametrize("grid", [(1, 1), (2, 7), (6, 4)])
def test_pooled_cells_equal_the_twin(grid):
    layer, x = lz.create_layer("spatial_reduction", dim=6, num_heads=2, pool_size=3).double(), tokens_of(*grid, dim=6).requires_grad_()
    for mask in (None, torch.arange(x.shape[1]) < torch.tensor([[x.shape[1]], [1]])):
        seed = torch.randn_like(x)
        results = [(y, *torch.autograd.grad(y, [x, *layer.parameters()], seed)) for y in (layer(x, mask, grid), oracle.twin(layer, x, grid, mask))]
        for fast, slow in zip(*results):
            torch.testing.assert_close(fast, slow)


def test_local_twins_are_windows_without_a_bias():
    layer, window = (lz.create_layer(n, dim=16, window_size=3, **o).double() for n, o in (("twins", {"kind": "local"}), ("window_attention", {})))
    nn.init.zeros_(window.relative_bias.table)
    window.load_state_dict(layer.near.state_dict(), strict=False)
    x, mask = tokens_of(7, 5), torch.rand(2, 35) > 0.3
    torch.testing.assert_close(layer(x, mask, (7, 5)), window(x, mask, (7, 5)))


def test_far_offsets_share_a_row():
    layer, wide = (lz.create_layer("multi_scale", dim=16, reach=reach).double() for reach in (2, 9))
    wide.load_state_dict({k: v for k, v in layer.state_dict().items() if "table" not in k}, strict=False)
    for name in ("attention.row_table", "attention.column_table"):
        table = layer.get_parameter(name).data
        wide.get_parameter(name).data.copy_(torch.cat([table[:1].expand(7, -1), table, table[-1:].expand(7, -1)]))
    x = tokens_of(6, 9)
    torch.testing.assert_close(layer(x, grid=(6, 9)), wide(x, grid=(6, 9)))


def test_regions_see_the_chosen_regions_alone():
    layer, grid = lz.create_layer("bi_level_routing", dim=16, region_size=2, top_k=2, kernel_size=1).double(), (6, 8)
    x = tokens_of(*grid)
    regions = blocks_2d(x.unflatten(1, grid), (2, 2))
    routes = layer.route(regions, torch.ones_like(regions[..., :1], dtype=torch.bool))
    seen = torch.zeros(2, 12, 12, dtype=torch.bool).scatter(2, routes, True)
    assert (seen.sum(2) == 2).all()
    y = layer(x, grid=grid)
    for region in range(12):
        moved = regions.clone()
        moved[:, region, 0] += 1e-7  # too little to be routed elsewhere
        change = layer(join_places(moved.transpose(1, 2), grid, (2, 2)), grid=grid) - y
        changed = blocks_2d(change.unflatten(1, grid), (2, 2)).abs().amax((2, 3)) > 1e-13
        expected = seen[:, :, region].clone()
        expected[:, region] = True  # its own query and its own value moved
        assert torch.equal(changed, expected)


def test_routes_follow_the_means_of_queries_and_keys():
    layer, grid = lz.create_layer("bi_level_routing", dim=16, region_size=2, top_k=1).double(), (4, 6)
    x = tokens_of(*grid)
    q, k = layer.qkv(x)[..., :32].unflatten(1, (2, 2, 3, 2)).mean((2, 4)).flatten(1, 2).chunk(2, -1)
    regions = blocks_2d(x.unflatten(1, grid), (2, 2))
    assert torch.equal(layer.route(regions, torch.ones_like(regions[..., :1], dtype=torch.bool)).squeeze(2), (q @ k.mT).argmax(2))


def test_points_at_rest_are_means_of_their_cells():
    layer, peer = (lz.create_layer(n, dim=16, num_heads=4).double() for n in ("deformable_attention", "mhsa"))
    nn.init.zeros_(layer.offset.weight)
    peer.load_state_dict(layer.state_dict(), strict=False)
    x = torch.randn(2, 16, 6, 8, dtype=torch.double)
    cells = F.avg_pool2d(x, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)  # each key four times, which no weight feels
    q, (_, k, v) = peer.split(x.flatten(2).mT)[0], peer.split(cells.flatten(2).mT)
    torch.testing.assert_close(layer(x), peer.merge(F.scaled_dot_product_attention(q, k, v)).mT.unflatten(2, (6, 8)))


def test_points_stay_in_range_of_their_cells():
    layer, grid = lz.create_layer("deformable_attention", dim=16, num_heads=4, num_groups=2, stride=3, offset_range=0.5), (7, 9)
    nn.init.normal_(layer.offset.weight, std=1e3)
    q = torch.randn(2, 4, 63, 4)
    points, seen = layer.points(q, grid, None)
    centres = torch.cartesian_prod(torch.tensor([1.0, 4.0, 6.0]), torch.tensor([1.0, 4.0, 7.0]))  # the last row of cells is cut
    assert seen is None and points.shape == (2, 2, 9, 2)
    torch.testing.assert_close((points - centres).abs(), torch.full_like(points, 1.5))


def test_points_at_places_have_the_bias_of_places():
    layer = lz.create_layer("deformable_attention", dim=16, num_heads=4, num_groups=4, stride=1, reach=4).double()
    peer = lz.create_layer("mhsa", dim=16, num_heads=4, position="relative_bias", grid=(5, 5)).double()
    nn.init.zeros_(layer.offset.weight)
    nn.init.normal_(layer.table)
    peer.load_state_dict(layer.state_dict(), strict=False)
    peer.relative_bias.table.data.copy_(layer.table)
    x = tokens_of(5, 5)
    torch.testing.assert_close(layer(x, grid=(5, 5)), peer(x, grid=(5, 5)))


def test_without_a_second_map_heads_are_normed_softmax_attention():
    layer = lz.create_layer("differential_attention", dim=16, num_heads=2, lambda_init=0.0).double()
    peer = lz.create_layer("mhsa", dim=16, num_heads=2).double()
    nn.init.zeros_(layer.lambda_vectors)  # exp(0) - exp(0) + 0
    q, k, v = layer.qkv.weight.data.view(3, 2, 8, 16)
    first = q.clone() * 2**0.5  # the scores of mhsa are divided by the root of all eight channels
    first[:, 4:] = 0
    peer.qkv.weight.data.copy_(torch.stack([first, k, v]).view(48, 16))
    nn.init.zeros_(peer.qkv.bias)
    nn.init.eye_(peer.proj.weight)
    nn.init.zeros_(peer.proj.bias)
    x = tokens_of(3, 5)
    heads = F.rms_norm(peer(x).unflatten(2, (2, 8)), (8,), layer.norm.weight, 1e-5)
    torch.testing.assert_close(layer(x), layer.proj(heads.flatten(2)))


def test_equal_maps_cancel():
    layer = lz.create_layer("differential_attention", dim=16, num_heads=2, lambda_init=0.5).double()
    nn.init.zeros_(layer.lambda_vectors)
    layer.lambda_vectors.data[0, :, 0] = math.log(1.5) ** 0.5  # exp(log 1.5) - exp(0) + 0.5 = 1
    rows = layer.qkv.weight.data.view(3, 2, 2, 4, 16)
    rows[:2, :, 1] = rows[:2, :, 0]
    torch.testing.assert_close(layer(tokens_of(3, 5)), layer.proj.bias.expand(2, 15, -1))


@pytest.mark.parametrize("name, options, message", [
    ("spatial_reduction", {"reduction": 0}, "reduction: got 0, expected a whole number >= 1. Choose a small one such as 2."),
    ("spatial_reduction", {"pool_size": 2.5}, "pool_size: got 2.5, expected a whole number >= 1. Choose a small one such as 2."),
    ("twins", {"kind": "near"}, "kind: got 'near', expected one of both, local, global. Choose one of these."),
    ("twins", {"window_size": 0}, "window_size: got 0, expected a whole number >= 1. Choose a small one such as 2."),
    ("multi_scale", {"kernel_size": 2}, "kernel_size: got 2, expected an odd whole number >= 1. Choose one such as 3, 5 or 7."),
    ("multi_scale", {"reach": -1}, "reach: got -1, expected a whole number >= 1. Choose a small one such as 2."),
    ("bi_level_routing", {"top_k": 0}, "top_k: got 0, expected a whole number >= 1. Choose a small one such as 2."),
    ("deformable_attention", {"num_groups": 3}, "num_groups: got 3, expected a divisor of num_heads=2. Some heads share the points of each group."),
    ("differential_attention", {"num_heads": 16},
     "num_heads: got 16 channels in 16 heads, expected an even number of channels in each. A head has two halves."),
])
def test_refusals(name, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        lz.create_layer(name, **{"dim": 16, "num_heads": 2, **options})
