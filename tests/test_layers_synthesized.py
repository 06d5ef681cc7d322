"""Weights that do not come from pairs of tokens: the Synthesizers, gMLP, and the sort of Sinkhorn attention."""

import re

import pytest
import torch
from oracles import gmlp, sinkhorn, synthesizer_factorized
from oracles.synthesizer_random import on_pairs
from torch import nn
from torch.nn import functional as F

import layerzoo as lz
from layerzoo.ops.sinkhorn import gumbel_like
from layerzoo.ops.sinkhorn import sinkhorn as balance
from layerzoo.ops.tables import resize_pairs, resize_places

SYNTHESIZERS = [
    ("synthesizer_random", {}), ("synthesizer_dense", {}), ("synthesizer_factorized", {}), ("synthesizer_factorized", {"kind": "dense"})]


def double(name, **options):
    return lz.create_layer(name, **options).double().eval()


@pytest.mark.parametrize("name, options", SYNTHESIZERS)
def test_zero_tables_take_the_mean_of_the_real_tokens(name, options):
    layer, x = double(name, dim=8, num_heads=2, grid=(2, 3), **options), torch.randn(2, 6, 8, dtype=torch.double)
    for parameter in ("table", "places", "queries", "rows"):
        if hasattr(layer, parameter):
            nn.init.zeros_(layer.get_parameter(parameter))
    mask = torch.tensor([[True] * 6, [True, False, True, True, False, False]])
    y, v = layer(x, mask=mask), layer.value(x)
    for n in range(2):
        assert torch.allclose(y[n, mask[n]], layer.proj(v[n, mask[n]].mean(0)).expand(int(mask[n].sum()), -1), rtol=0, atol=1e-12)
    layer.causal = True
    assert torch.allclose(layer(x), layer.proj(v.cumsum(1) / torch.arange(1, 7)[:, None]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_factors_make_the_matrix_of_the_random_synthesizer(causal):
    whole = double("synthesizer_random", dim=8, num_heads=2, grid=(2, 3), causal=causal)
    factors = double("synthesizer_factorized", dim=8, num_heads=2, grid=(2, 3), rank=6, causal=causal)
    factors.load_state_dict(factors.state_dict() | {k: v for k, v in whole.state_dict().items() if k != "table"})
    factors.keys.data = torch.eye(6).double().expand(2, -1, -1)  # rank N: any matrix has such factors
    factors.queries.data = whole.table.data.mT
    x = torch.randn(2, 6, 8, dtype=torch.double)
    assert torch.allclose(factors(x), whole(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name, options", SYNTHESIZERS)
def test_weights_never_look_at_the_key(name, options):
    """Of all tokens but the query's own, the output is linear; where the weights are random, of its own too."""
    layer, x = double(name, dim=8, num_heads=2, grid=(2, 3), **options), torch.randn(1, 6, 8, dtype=torch.double)
    moved = [x.clone() for _ in range(3)]
    for times, y in enumerate(moved):
        y[:, 2] += 3 * times
    base, once, twice = (layer(y)[0] for y in moved)
    linear = torch.isclose(twice - base, 2 * (once - base), rtol=0, atol=1e-10).all(-1)
    by_token = name == "synthesizer_dense" or "kind" in options
    assert linear.tolist() == [True, True, not by_token, True, True, True] and (once - base).abs().amax(-1).min() > 1e-3


def test_the_random_matrix_may_stay_as_drawn():
    fixed, learned = (lz.create_layer("synthesizer_random", dim=8, grid=(2, 3), trainable=t) for t in (False, True))
    assert "table" not in dict(fixed.named_parameters()) and "table" in fixed.state_dict()
    assert "table" in dict(learned.named_parameters()) and learned.state_dict().keys() == fixed.state_dict().keys()
    assert torch.equal(fixed.to(torch.float64).table.float(), fixed.table.float()) and fixed.table.std() > 0.5


@pytest.mark.parametrize("name, options, beside", [
    ("synthesizer_random", {}, 4 * 48**2), ("synthesizer_random", {"trainable": False}, 0), ("synthesizer_dense", {}, 32 * 48 + 32**2 + 32),
    ("synthesizer_factorized", {}, 2 * 4 * 48 * 8), ("synthesizer_factorized", {"kind": "dense"}, (6 + 8 + 32) * 32 + 32)])
def test_parameters_are_the_papers(name, options, beside):
    layer = lz.create_layer(name, dim=32, num_heads=4, grid=(6, 8), **options)
    assert sum(p.numel() for p in layer.parameters()) == 2 * (32**2 + 32) + beside


class Masked(nn.Module):
    def __init__(self, layer, grid):
        super().__init__()
        self.layer, self.grid = layer, grid
        self.register_buffer("mask", torch.arange(grid[0] * grid[1])[None] % 3 > 0)

    def forward(self, tokens):
        return self.layer(tokens, mask=self.mask, grid=self.grid)


@pytest.mark.parametrize("causal", [False, True])
def test_the_dense_synthesizer_keeps_no_square_matrix(causal):
    layer = lz.create_layer("synthesizer_dense", dim=16, num_heads=2, grid=(4, 4), causal=causal)
    small, large = (lz.cost(Masked(layer, (side, side)), (1, side**2, 16)).activation_bytes for side in (64, 128))
    assert large < 4.2 * small < 128**4


def test_the_same_random_weights_serve_all_samples():
    layer = lz.create_layer("synthesizer_random", dim=16, num_heads=2, grid=(4, 4))
    one, five = (lz.cost(layer, (batch, 16, 32, 32)).activation_bytes for batch in (1, 5))
    assert (five - one) / 4 < 2 * 1024**2 * 4 / 4  # a sample adds less than a quarter of the weights, (h, N, N) in float32


def test_factorized_kinds_equal_the_twin_when_causal_masked_and_resized():
    mask = torch.tensor([[True] * 8, [False, True, True, False, True, True, True, False]])
    for options in ({"rank": 1}, {"kind": "dense", "num_heads": 1}):
        layer = double("synthesizer_factorized", dim=8, grid=(3, 2), causal=True, **options)
        x = torch.randn(2, 8, 8, dtype=torch.double)
        assert torch.allclose(layer(x, mask=mask, grid=(2, 4)), synthesizer_factorized.twin(layer, x, (2, 4), mask), rtol=0, atol=1e-12)


def test_tables_are_resized_along_both_axes():
    table = torch.randn(2, 6, 6, dtype=torch.double)
    assert torch.equal(resize_pairs(table, (2, 3), (2, 3)), table)
    larger = resize_pairs(table, (2, 3), (4, 5))
    for head in range(2):
        assert torch.allclose(larger[head], on_pairs((2, 3), (4, 5), table[head]), rtol=0, atol=1e-12)
    ramp = torch.arange(4.0).expand(3, 4).flatten()
    assert resize_places(ramp, (3, 4), (3, 8)).unflatten(0, (3, 8))[1].tolist() == [0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]


def test_gmlp_starts_as_an_mlp():
    layer, x = lz.create_layer("gmlp", dim=16, grid=(4, 5)), torch.randn(2, 20, 16)
    assert torch.allclose(layer(x), layer.fc2(F.gelu(layer.fc1(x))), rtol=0, atol=1e-3)
    assert torch.equal(layer.spatial.bias, torch.ones(20)) and 0 < layer.spatial.weight.abs().max() < 1e-4


def test_gmlp_is_a_block_of_its_own():
    block = lz.create_block("gmlp", 16, ffn="none", grid=(4, 4))
    assert block.ffn is None and block.layer.grid == (4, 4) and block(torch.randn(2, 16, 4, 4)).shape == (2, 16, 4, 4)
    assert block.layer.fc1.out_features == block.layer.fc_gate.out_features == 48


def test_gmlp_gates_keep_their_scale_on_a_larger_map():
    layer = double("gmlp", dim=4, grid=(3, 5))
    nn.init.normal_(layer.spatial.weight)
    sums = resize_places(layer.spatial.weight.sum(1), (3, 5), (6, 10))
    assert torch.allclose(layer.weight_at((6, 10)).sum(1), sums, rtol=0, atol=1e-12)


@pytest.mark.parametrize("grid", [(2, 3), (3, 4)])
@pytest.mark.parametrize("causal", [False, True])
def test_gmlp_with_attention_equals_the_twin(causal, grid):
    layer, length = double("gmlp", dim=6, grid=(2, 3), mlp_ratio=2, attention_dim=3, causal=causal), grid[0] * grid[1]
    nn.init.normal_(layer.spatial.weight)
    x, mask = torch.randn(2, length, 6, dtype=torch.double), (torch.arange(2 * length) % 5 > 0).view(2, length)
    y = layer(x, mask=mask, grid=grid)
    assert torch.allclose(y, gmlp.twin(layer, x, grid, mask), rtol=0, atol=1e-12)
    without = double("gmlp", dim=6, grid=(2, 3), mlp_ratio=2, causal=causal)
    without.load_state_dict({k: v for k, v in layer.state_dict().items() if k in without.state_dict()})
    assert (without(x, mask=mask, grid=grid) - y).abs().max() > 1e-3


def test_sinkhorn_makes_a_matrix_doubly_stochastic():
    scores, real = 2 * torch.randn(3, 2, 5, 5, dtype=torch.double), torch.arange(5) < torch.tensor([[5], [3], [1]])
    visible = real[:, None, :, None] & real[:, None, None, :]
    few, many = (balance(scores, visible, count) for count in (7, 300))
    for order in (few, many):
        assert not order[~visible.expand_as(order)].any() and order[2, :, 0, 0].tolist() == [1, 1]
        assert torch.allclose(order.sum(3), real[:, None].double().expand(3, 2, 5), atol=1e-12)
    assert torch.allclose(many.sum(2), real[:, None].double().expand(3, 2, 5), atol=1e-6)
    assert (few.sum(2) - real[:, None].double()).abs().max() < 0.1
    permutation = torch.eye(5, dtype=torch.double)[[2, 0, 1, 4, 3]]
    assert torch.allclose(balance(50 * permutation, torch.ones(5, 5, dtype=torch.bool), 7), permutation, atol=1e-12)


def test_causal_sinkhorn_rows_do_not_know_later_ones():
    scores = torch.randn(6, 6, dtype=torch.double)
    past = torch.ones(6, 6, dtype=torch.bool).tril(-1)
    whole = balance(scores, past, 7, causal=True)
    for count in range(1, 7):
        part = balance(scores[:count, :count], past[:count, :count], 7, causal=True)
        assert torch.allclose(part, whole[:count, :count], rtol=0, atol=1e-13)
    assert torch.allclose(whole[1:].sum(1), torch.ones(5, dtype=torch.double)) and not whole[0].any() and not whole.triu().any()
    in_the_end = balance(scores, past, 3000, causal=True)
    assert whole[5, :4].max() > 0.01 and in_the_end[1:].diagonal().min() > 0.99, "the block before"


def test_gumbel_noise_has_its_mean_and_spread():
    noise = gumbel_like(torch.empty(100000))
    assert abs(noise.mean() - 0.5772) < 0.02 and abs(noise.std() - 1.2825) < 0.02 and noise.isfinite().all()


def test_sinkhorn_sorts_at_random_in_training_alone():
    layer, x = lz.create_layer("sinkhorn", dim=8, block_size=4), torch.randn(2, 16, 8)

    def run(seed):
        torch.manual_seed(seed)
        return layer(x)

    assert torch.equal(run(0), run(0)) and not torch.equal(run(0), run(1))
    layer.eval()
    assert torch.equal(run(0), run(1))


def seen(layer, length):
    """(N, N) bool: query i depends on token j."""
    x, rows = torch.randn(1, length, layer.dim, dtype=torch.double, requires_grad=True), []
    for i in range(length):
        torch.manual_seed(0)
        rows.append(torch.autograd.grad(layer(x)[0, i].square().sum(), x)[0][0].any(-1))
    return torch.stack(rows)


def test_a_permutation_shows_own_and_sorted_block():
    layer, block = double("sinkhorn", dim=8, num_heads=2, block_size=3), torch.arange(12) // 3
    permutation = torch.tensor([2, 0, 3, 1])
    layer.sort = lambda blocks, keys, real: torch.eye(4, dtype=torch.double)[permutation].expand(1, 2, 4, 4)
    assert torch.equal(seen(layer, 12), (block == block[:, None]) | (block == permutation[block][:, None]))
    layer.num_sorted_blocks = 2
    assert torch.equal(seen(layer, 12), (torch.eye(12, dtype=torch.bool) | (block == 2) | (block == 0)))


@pytest.mark.parametrize("training", [False, True])
def test_sinkhorn_reaches_all_or_all_of_the_past(training):
    everything = torch.ones(11, 11, dtype=torch.bool)
    for causal in (False, True):
        layer = double("sinkhorn", dim=8, num_heads=2, block_size=3, causal=causal).train(training)
        assert torch.equal(seen(layer, 11), everything.tril() if causal else everything)


@pytest.mark.parametrize("count", [1, 2, 9])
@pytest.mark.parametrize("length", [3, 8, 11])
def test_sortcut_equals_the_twin(length, count):
    layer = double("sinkhorn", dim=8, num_heads=2, block_size=4, num_sorted_blocks=count, num_iterations=2)
    x = torch.randn(2, length, 8, dtype=torch.double)
    for mask in (None, (torch.arange(2 * length) % 3 > 0).view(2, length)):
        assert torch.allclose(layer(x, mask=mask), sinkhorn.twin(layer, x, (1, length), mask), rtol=0, atol=1e-12)


def test_sortcut_scores_few_blocks():
    own, cut = (lz.cost(lz.create_layer("sinkhorn", dim=64, num_sorted_blocks=m), (1, 64, 64, 64)) for m in (None, 1))
    assert cut.flops < 0.95 * own.flops and cut.activation_bytes < own.activation_bytes


@pytest.mark.parametrize("causal", [False, True])
def test_sinkhorn_with_a_mask_of_scattered_tokens_equals_the_sequence_without_the_rest(causal):
    layer, x = double("sinkhorn", dim=8, num_heads=2, block_size=4, causal=causal), torch.randn(3, 21, 8, dtype=torch.double)
    mask = torch.rand(3, 21) > 0.5
    y = layer(x, mask)
    for n in range(3):
        assert torch.allclose(y[n, mask[n]], layer(x[n, mask[n]][None])[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name, options, message", [
    ("synthesizer_factorized", {"grid": (2, 2), "kind": "mixed"}, "kind: got 'mixed', expected one of random, dense. Choose one of these."),
    ("synthesizer_factorized", {"grid": (2, 2), "rank": 0}, "rank: got 0, expected a whole number >= 1. The paper's is 8."),
    ("synthesizer_dense", {"grid": (2, 0)}, "grid: got (2, 0), expected (H, W), both >= 1."),
    ("synthesizer_random", {"grid": (2, 2), "num_heads": 3}, "num_heads: got 3, expected a divisor of dim=16. Choose one of 1, 2, 4, 8, 16."),
    ("gmlp", {"grid": (2, 2), "mlp_ratio": 0.1}, "mlp_ratio: got 0.1, expected a number that leaves a hidden channel. Choose one such as 4."),
    ("gmlp", {"grid": (2, 2), "attention_dim": -1}, "attention_dim: got -1, expected a whole number >= 0. The paper's is 64; 0 is none."),
    ("sinkhorn", {"block_size": 0}, "block_size: got 0, expected a whole number >= 1. Leave it out for the default."),
    ("sinkhorn", {"num_iterations": 0}, "num_iterations: got 0, expected a whole number >= 1. Leave it out for the default."),
    ("sinkhorn", {"num_sorted_blocks": 0}, "num_sorted_blocks: got 0, expected a whole number >= 1. Leave it out for the default."),
    ("sinkhorn", {"temperature": 0.0}, "temperature: got 0.0, expected a number > 0. The paper's is 0.75."),
    ("sinkhorn", {"num_sorted_blocks": 2, "causal": True},
     "num_sorted_blocks: got 2, expected None with causal. SortCut shows queries the future."),
])
def test_refusals(name, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        lz.create_layer(name, dim=16, **options)
