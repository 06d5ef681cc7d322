"""Attention over blocks, windows and fixed patterns: which tokens see which, cost with masks and with causal, and refusals."""

import importlib
import re

import pytest
import torch

import layerzoo as lz

NAMES = ["blockwise", "longformer", "sparse_strided", "sparse_fixed", "bigbird"]


def seen(layer, length, **options):
    """(N, N) bool: query i depends on token j, in any head."""
    layer = layer.double().eval()
    x = torch.randn(1, length, layer.dim, dtype=torch.double, requires_grad=True)
    rows = [torch.autograd.grad(layer(x, **options)[0, i].square().sum(), x)[0][0].any(-1) for i in range(length)]
    return torch.stack(rows)


@pytest.mark.parametrize("block_size, shifts, total", [(2, 0, 4), (2, 2, 4), (3, 3, 3), (4, 1, 1)])
def test_blockwise_heads_see_one_block_each(block_size, shifts, total):
    layer = lz.create_layer("blockwise", dim=12, num_heads=3, block_size=block_size, num_shifted=shifts)
    blocks = layer.seen_blocks(torch.tensor([[total]]), total)[0]
    assert all(sorted(row) == list(range(total)) for row in blocks.tolist())
    moved = [row[0] for row in blocks.tolist()]
    assert moved == [0] * (3 - shifts) + [1 + t % max(total - 1, 1) if total > 1 else 0 for t in range(shifts)]


def test_blockwise_has_the_heads_of_the_paper():
    layer = lz.create_layer("blockwise", dim=24, num_heads=12)
    assert layer.seen_blocks(torch.tensor([[3]]), 3)[0, :, 0].tolist() == [0] * 8 + [1, 2, 1, 2]


@pytest.mark.parametrize("window, count", [(1, 0), (2, 0), (5, 1), (40, 2), (200, 0)])
def test_longformer_sees_window_and_global_tokens(window, count):
    place = torch.arange(50)
    expected = (place - place[:, None]).abs() <= window // 2
    expected = expected | (place < count) | (place < count)[:, None]
    assert torch.equal(seen(lz.create_layer("longformer", dim=8, window_size=window, num_global=count), 50), expected)


def test_longformer_has_projections_of_its_own_for_global_tokens_alone():
    layer, x = lz.create_layer("longformer", dim=8, num_global=2), torch.randn(1, 9, 8)
    y = layer(x)
    with torch.no_grad():
        layer.key_value_global.bias.add_(1)
    moved = (layer(x) - y).abs().amax(-1)[0]
    assert moved[:2].min() > 1e-3 and not moved[2:].any()
    assert not hasattr(lz.create_layer("longformer", dim=8, num_global=0), "query_global")


@pytest.mark.parametrize("name", ["sparse_strided", "sparse_fixed"])
@pytest.mark.parametrize("causal", [False, True])
def test_sparse_patterns_reach_all_in_two_layers(name, causal):
    layer = lz.create_layer(name, dim=8, num_heads=2, causal=causal, **({"num_summary": 1} if name == "sparse_fixed" else {}))
    once = seen(layer, 30)
    twice, all_seen = (once.double() @ once.double()) > 0, torch.ones(30, 30, dtype=torch.bool)
    assert torch.equal(twice, all_seen.tril()) if causal else twice[:, :24].all()  # a last block without summary is seen from inside
    assert once.sum() < 0.6 * (all_seen.tril().sum() if causal else 900)


@pytest.mark.parametrize("stride", [1, 4, 9, 40])
@pytest.mark.parametrize("local", [0, 1, 2])
@pytest.mark.parametrize("name", ["sparse_strided", "sparse_fixed"])
def test_sparse_options_equal_the_twin(name, local, stride):
    """Strides beyond the length, summaries as long as blocks, heads of one kind."""
    twin = importlib.import_module(f"oracles.{name}").twin
    mask = torch.tensor([[True] * 9, [False, True, True] * 3])
    for causal in (False, True):
        for options in ({"num_summary": 1}, {"num_summary": 35}) if name == "sparse_fixed" else ({},):
            layer = lz.create_layer(name, dim=8, num_heads=2, stride=stride, num_local_heads=local, causal=causal, **options).double()
            x = torch.randn(2, 9, 8, dtype=torch.double)
            assert torch.allclose(layer(x, mask), twin(layer, x, (1, 9), mask), atol=1e-12)


def test_fixed_queries_before_the_first_summary_get_zeros():
    layer = lz.create_layer("sparse_fixed", dim=8, num_heads=2, stride=4, num_summary=1, num_local_heads=0, causal=True)
    y = layer(torch.randn(1, 10, 8))
    assert torch.equal(y[0, :3], layer.proj.bias.expand(3, -1)) and not torch.equal(y[0, 3], layer.proj.bias)


@pytest.mark.parametrize("count, random", [(1, 3), (5, 1), (6, 1), (9, 3), (40, 3), (300, 2), (40, 0)])
def test_bigbird_plan(count, random):
    layer = lz.create_layer("bigbird", dim=8, num_heads=2, num_random=random)
    blocks, valid = layer.seen_blocks(torch.tensor([count - 1]).view(1, 1, 1), count + 2)
    for row, ok in zip(blocks[0].flatten(0, 1)[:count].tolist(), valid[0].flatten(0, 1)[:count].tolist()):
        used = [b for b, real in zip(row, ok) if real]
        assert len(used) == len(set(used)) and max(used) < count
    for block in range(1, count - 1):
        used = set(blocks[0, 1, block][valid[0, 1, block]].tolist())
        assert used >= {0, block - 1, block, block + 1, count - 1}
        assert len(used) == min(count, len({0, block - 1, block, block + 1, count - 1}) + random)
    if count == 300:
        assert (blocks[0, :, 1:-3, 5:] != blocks[0, :, 2:-2, 5:]).float().mean() > 0.9, "each block has draws of its own"


def test_bigbird_draws_are_saved():
    layer, other = (lz.create_layer("bigbird", dim=8, num_heads=2, block_size=2) for _ in range(2))
    assert not torch.equal(layer.draws, other.draws) and "draws" in layer.state_dict()
    assert torch.equal(layer.to(torch.bfloat16).draws, layer.draws) and layer.draws.dtype == torch.int64


@pytest.mark.parametrize("name", NAMES)
def test_a_mask_of_scattered_tokens_equals_the_sequence_without_the_rest(name):
    layer, x = lz.create_layer(name, **lz.layer_card(name).sizes["odd"]).double(), torch.randn(3, 37, 15, dtype=torch.double)
    mask = torch.rand(3, 37) > 0.5
    y = layer(x, mask)
    for n in range(3):
        assert torch.allclose(y[n, mask[n]], layer(x[n, mask[n]][None])[0], atol=1e-12)


@pytest.mark.parametrize("name, options, exponent", [
    ("blockwise", {}, 1), ("longformer", {}, 1), ("bigbird", {}, 1), ("sparse_strided", {"causal": True}, 1.5), ("sparse_fixed", {"causal": True}, 1.5)])
def test_no_square_matrix(name, options, exponent):
    layer = lz.create_layer(name, dim=16, num_heads=2, **options)
    small, large = (lz.cost(layer, (1, n, 16)) for n in (4096, 4 * 4096))
    limit = 1.05 * 4**exponent
    assert large.activation_bytes < limit * small.activation_bytes and large.flops < limit * small.flops
    assert large.activation_bytes < (4 * 4096) ** 2 / 2


@pytest.mark.parametrize("name, options, message", [
    ("blockwise", {"block_size": 0}, "block_size: got 0, expected a whole number of tokens in a block. Choose one such as 64."),
    ("blockwise", {"num_shifted": 3}, "num_shifted: got 3, expected 0 to 2 of the heads. Leave it out for a third of the heads."),
    ("blockwise", {"num_shifted": -1}, "num_shifted: got -1, expected 0 to 2 of the heads."),
    ("longformer", {"window_size": 0}, "window_size: got 0, expected a whole number >= 1 of tokens. Choose an even one such as 64."),
    ("longformer", {"num_global": -1}, "num_global: got -1, expected a whole number >= 0 of global tokens. Choose 0 for none."),
    ("sparse_strided", {"stride": 0}, "stride: got 0, expected a whole number of tokens, or None for sqrt(N). Choose the width of the map."),
    ("sparse_strided", {"num_local_heads": 3}, "num_local_heads: got 3, expected 0 to 2 local heads. Leave it out for half of the heads."),
    ("sparse_fixed", {"stride": 0}, "stride: got 0, expected a whole number >= 1 of tokens in a block. Leave it out for sqrt(N)."),
    ("sparse_fixed", {"num_summary": 0}, "num_summary: got 0, expected a whole number >= 1 of summary tokens. Choose one such as 8."),
    ("sparse_fixed", {"num_local_heads": -1}, "num_local_heads: got -1, expected 0 to 2 block heads. Leave it out for half of the heads."),
    ("bigbird", {"block_size": 0}, "block_size: got 0, expected a whole number >= 1 of tokens. The paper's code has 16."),
    ("bigbird", {"num_random": -1}, "num_random: got -1, expected a whole number >= 0 of random blocks. The paper has 3."),
])
def test_refusals(name, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        lz.create_layer(name, dim=16, num_heads=2, **options)
