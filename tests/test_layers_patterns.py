"""Local and mixed patterns: what each query sees, what the pooled, compressed and global tokens hold, cost with causal, and refusals."""

import importlib
import re

import pytest
import torch
from torch.nn import functional as F

import layerzoo as lz

SEQUENCES = [("etc_global_local", {}), ("poolingformer", {}), ("long_short", {}), ("long_short", {"causal": True})]
CAUSAL = ["image_transformer", "long_short"]


def build(name, **options):
    return lz.create_layer(name, **{**lz.layer_card(name).sizes["tiny"], **options}).double().eval()


def seen(layer, length, grid=None):
    """(N, N) bool: query i depends on token j."""
    x = torch.randn(1, length, layer.dim, dtype=torch.double, requires_grad=True)
    y = layer(x, grid=grid)
    return torch.stack([torch.autograd.grad(y[0, i].square().sum(), x, retain_graph=True)[0][0].any(-1) for i in range(length)])


def silence(*parameters):
    with torch.no_grad():
        for p in parameters:
            p.zero_()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("block, memory", [((3, 4), (1, 2)), ((2, 2), (0, 0)), ((1, 1), (2, 1)), ((3, 2), (9, 9)), ((8, 3), (1, 1))])
def test_image_transformer_sees_its_memory_block(block, memory, causal):
    height, width = 7, 9
    row, column = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
    expected = torch.ones(63, 63, dtype=torch.bool)
    for place, size, margin in ((row, block[0], memory[0]), (column, block[1], memory[1])):
        first = place // size * size
        expected &= (place >= first[:, None] - margin) & (place < first[:, None] + size + margin)
    layer = build("image_transformer", block_size=block, memory=memory, causal=causal)
    assert torch.equal(seen(layer, 63, (height, width)), expected.tril() if causal else expected)


@pytest.mark.parametrize("radius", [0, 3, 20, 90])
def test_etc_tokens_see_their_radius_and_by_the_globals_all(radius):
    place = torch.arange(50)
    near = (place - place[:, None]).abs() <= radius
    assert torch.equal(seen(build("etc_global_local", radius=radius, num_global=0), 50), near)
    layer = build("etc_global_local", radius=radius)
    assert seen(layer, 50).all()
    silence(layer.key_value_l2g.weight)  # the globals hold nothing of the input now
    assert torch.equal(seen(layer, 50), near)


def test_etc_pieces_have_parameters_of_their_own():
    names = dict(build("etc_global_local").named_parameters())
    assert {n.split(".")[0] for n in names} == {"relative", "global_tokens", "qkv", "proj", "global_qkv", "key_value_g2l", "global_proj", "key_value_l2g"}
    assert {n.split(".")[0] for n, _ in build("etc_global_local", num_global=0).named_parameters()} == {"relative", "qkv", "proj"}


def test_etc_offsets_beyond_the_largest_distance_share_a_label():
    layer, x = build("etc_global_local", radius=6, max_distance=2, num_global=0), torch.randn(1, 12, 8, dtype=torch.double)
    layer.relative.grad = None
    layer(x)[0, 0].square().sum().backward()  # the first token has offsets 0 to 6
    assert layer.relative.grad.abs().amax((0, 2)).gt(0).tolist() == [False, False, True, True, True]
    wide = build("etc_global_local", radius=6, max_distance=9, num_global=0)
    state = {**layer.state_dict(), "relative": layer.relative[:, (torch.arange(-9, 10).clamp(-2, 2) + 2)]}
    wide.load_state_dict(state)
    assert torch.allclose(wide(x), layer(x), atol=1e-12)


def test_poolingformer_without_its_second_level_is_a_sliding_window():
    layer, plain = build("poolingformer", window_size=6), lz.create_layer("longformer", dim=8, num_heads=2, window_size=6, num_global=0).double()
    silence(layer.pool_qkv.weight, layer.pool_qkv.bias)
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if k in plain.state_dict()})
    x, mask = torch.randn(2, 29, 8, dtype=torch.double), torch.rand(2, 29) > 0.4
    assert torch.allclose(layer(x, mask), plain(x, mask), atol=1e-12)


@pytest.mark.parametrize("pool", ["mean", "dynamic"])
@pytest.mark.parametrize("reach, kernel, stride", [(3, 3, 2), (8, 5, 4), (20, 4, 3), (90, 1, 5), (0, 3, 1)])
def test_poolingformer_sees_the_rows_of_pooled_rows(reach, kernel, stride, pool):
    place, length = torch.arange(47), 47
    middle = torch.arange(0, length, stride)
    first = middle[:, None] - kernel // 2
    pooled = (place >= first) & (place < first + kernel)
    near = (middle - place[:, None]).abs() <= reach
    expected = (near.double() @ pooled.double() > 0) | torch.eye(length, dtype=torch.bool)  # its query is its own
    layer = build("poolingformer", window_size=1, pool_window=2 * reach + 1, kernel_size=kernel, stride=stride, pool=pool)
    assert torch.equal(seen(layer, length), expected)


@pytest.mark.parametrize("pool", ["mean", "max", "dynamic"])
def test_pools_equal_the_twin(pool):
    layer, twin = build("poolingformer", kernel_size=4, stride=3, pool=pool), importlib.import_module("oracles.poolingformer").twin
    x, mask = torch.randn(2, 19, 8, dtype=torch.double), torch.rand(2, 19) > 0.3
    assert torch.allclose(layer(x), twin(layer, x, (1, 19)), atol=1e-12)
    assert torch.allclose(layer(x, mask), twin(layer, x, (1, 19), mask), atol=1e-12)
    assert hasattr(layer, "key_taps") == (pool == "dynamic")


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [4, 10, 60])
def test_long_short_window_is_that_of_the_segment(window, causal):
    layer, place = build("long_short", window_size=window, causal=causal), torch.arange(37)
    silence(layer.norm_far.weight)
    first = place[:, None] // window * window
    wide = (place >= first - window // 2) & (place < first + window + window // 2)
    assert torch.equal(seen(layer, 37), (place >= first - window).tril() if causal else wide)


@pytest.mark.parametrize("segment, count", [(2, 3), (4, 1), (12, 2), (3, 50)])
def test_long_short_past_is_compressed_by_complete_segments(segment, count):
    layer, place = build("long_short", window_size=12, segment_size=segment, num_segments=count, causal=True), torch.arange(41)
    silence(layer.norm_near.weight)
    own, theirs = place[:, None] // segment, place // segment
    expected = (theirs < own) & (theirs >= own - count)
    expected = expected | torch.eye(41, dtype=torch.bool) & expected.any(1)  # its query is its own
    assert torch.equal(seen(layer, 41), expected)


def test_long_short_sees_all_and_compresses_equal_tokens_to_themselves():
    layer = build("long_short")
    assert seen(layer, 30).all()
    kv, real = torch.randn(1, 1, 16, dtype=torch.double).expand(2, 9, 16), torch.ones(2, 9, dtype=torch.bool)
    far = layer.compress(torch.randn(2, 9, 8, dtype=torch.double), kv, real)
    normed = layer.norm_far(kv[:, :1].unflatten(2, (2, 8))).flatten(2)
    assert far.shape == (2, 1, 3, 16) and torch.allclose(far, normed.unsqueeze(1).expand_as(far), atol=1e-12)


def test_long_short_ranks_are_those_of_the_paper():
    assert lz.create_layer("long_short", dim=16).num_landmarks == 32
    assert lz.create_layer("long_short", dim=16, causal=True).num_landmarks == 1


def test_criss_cross_sees_a_cross_and_then_the_map():
    row, column = torch.arange(5).repeat_interleave(6), torch.arange(6).repeat(5)
    cross = (row == row[:, None]) | (column == column[:, None])
    assert torch.equal(seen(build("criss_cross", reduction=2, recurrence=1), 30, (5, 6)), cross)
    assert seen(build("criss_cross", reduction=2), 30, (5, 6)).all()


def test_criss_cross_passes_share_weights_and_add_up():
    once, twice = build("criss_cross", recurrence=1), build("criss_cross")
    twice.load_state_dict(once.state_dict())
    x = torch.randn(2, 8, 5, 6, dtype=torch.double)
    first = once(x)
    assert torch.allclose(twice(x), first + once(x + first), atol=1e-12)


@pytest.mark.parametrize("grid", [(1, 12), (12, 1)])
def test_criss_cross_of_a_line_is_attention_without_a_scale(grid):
    layer, x = build("criss_cross", reduction=2, recurrence=1), torch.randn(2, 12, 8, dtype=torch.double)
    q, k, v = layer.qkv(x).split(layer.widths, -1)
    assert torch.allclose(layer(x, grid=grid), F.scaled_dot_product_attention(q, k, v, scale=1.0), atol=1e-12)


def test_criss_cross_counts_a_position_once():
    layer, x = build("criss_cross", recurrence=1, qkv_bias=False), torch.randn(1, 12, 8, dtype=torch.double)
    silence(layer.qkv.weight[:2])  # q and k of one channel each
    values, row, column = (x @ layer.qkv.weight[2:].T)[0], torch.arange(12) // 4, torch.arange(12) % 4
    cross = ((row == row[:, None]) | (column == column[:, None])).double()
    assert torch.equal(cross.sum(1), torch.full((12,), 6.0, dtype=torch.double))
    assert torch.allclose(layer(x, grid=(3, 4))[0], cross @ values / 6, atol=1e-12)


def test_criss_cross_scores_may_be_large():
    layer = build("criss_cross").float()
    assert layer(1e4 * torch.randn(2, 8, 5, 6)).isfinite().all()


@pytest.mark.parametrize("name, options", SEQUENCES)
def test_a_mask_of_scattered_tokens_equals_the_sequence_without_the_rest(name, options):
    layer, x, mask = build(name, **options), torch.randn(2, 37, 8, dtype=torch.double), torch.rand(2, 37) > 0.5
    y = layer(x, mask)
    for n in range(2):
        assert torch.allclose(y[n, mask[n]], layer(x[n, mask[n]][None])[0], atol=1e-12)


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_forms_cost_linear_time_and_memory(name):
    layer = lz.create_layer(name, dim=16, num_heads=2, causal=True)
    small, large = (lz.cost(layer, (1, 16, side, side)) for side in (32, 64))
    assert large.flops < 4.2 * small.flops and large.activation_bytes < 4.2 * small.activation_bytes


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_forms_export_and_run_in_half_precision(name):
    layer, x = lz.create_layer(name, dim=16, num_heads=2, causal=True), torch.randn(2, 16, 5, 7)
    y = layer(x)
    assert torch.allclose(torch.export.export(layer, (x,)).module()(x), y, atol=1e-6)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            half = layer(x)
        assert half.dtype == dtype and torch.allclose(half.float(), y, atol=0.03)


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("grid", [(1, 1), (3, 5)])
def test_causal_gradients_reach_every_parameter(name, grid):
    layer = build(name, causal=True).train()
    mask = torch.tensor([[True] * (grid[0] * grid[1]), [False] * (grid[0] * grid[1])])
    layer(torch.randn(2, mask.shape[1], 8, dtype=torch.double), mask, grid).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("name, options, message", [
    ("image_transformer", {"block_size": (0, 4)}, "block_size: got (0, 4), expected (rows, columns) of a query block, both >= 1. Choose one such as (8, 8)."),
    ("image_transformer", {"block_size": (4,)}, "block_size: got (4,), expected (rows, columns) of a query block, both >= 1."),
    ("image_transformer", {"memory": (1, -1)}, "memory: got (1, -1), expected (rows, columns) around a query block, both >= 0. Choose half of block_size."),
    ("etc_global_local", {"radius": -1}, "radius: got -1, expected a whole number of tokens >= 0. The paper's is 84, for 4096 tokens."),
    ("etc_global_local", {"max_distance": -1}, "max_distance: got -1, expected a whole number of tokens >= 0. The paper's is 12, for 4096 tokens."),
    ("etc_global_local", {"num_global": -1}, "num_global: got -1, expected a whole number of tokens >= 0. The paper's is 230, for 4096 tokens."),
    ("poolingformer", {"window_size": 0}, "window_size: got 0, expected a whole number of positions, one or more. The paper has 128."),
    ("poolingformer", {"kernel_size": 0}, "kernel_size: got 0, expected a whole number of positions, one or more. The paper has 5."),
    ("poolingformer", {"stride": 0}, "stride: got 0, expected a whole number of positions, one or more. The paper has 4."),
    ("poolingformer", {"pool_window": 5}, "pool_window: got 5, expected at least 6, so that every query sees a pooled row. Choose four times window_size, as the paper."),
    ("poolingformer", {"pool_window": 0, "stride": 1}, "pool_window: got 0, expected at least 1, so that every query sees a pooled row."),
    ("poolingformer", {"pool": "median"}, "pool: got 'median', expected one of mean, max, dynamic. Choose one of these."),
    ("long_short", {"window_size": 0}, "window_size: got 0, expected a whole number, at least one. Leave it out for a default of the layer."),
    ("long_short", {"num_landmarks": 0}, "num_landmarks: got 0, expected a whole number, at least one. Leave it out for a default of the layer."),
    ("long_short", {"num_segments": 0}, "num_segments: got 0, expected a whole number, at least one. Leave it out for a default of the layer."),
    ("long_short", {"segment_size": 0}, "segment_size: got 0, expected a divisor of window_size=32. Choose half of the window."),
    ("long_short", {"segment_size": 5, "causal": True}, "segment_size: got 5, expected a divisor of window_size=32. Choose half of the window."),
    ("criss_cross", {"reduction": 17}, "reduction: got 17, expected 1 to 16, the channels. The paper's is 8."),
    ("criss_cross", {"recurrence": 0}, "recurrence: got 0, expected a whole number of passes >= 1. The paper's is 2."),
])
def test_refusals(name, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        lz.create_layer(name, dim=16, **options)
