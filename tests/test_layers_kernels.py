"""Attention by random features, exact attention in chunks, and state spaces: what neither the kit nor the twins show."""

import dataclasses
import math
import re

import pytest
import torch
from oracles.random_feature_attention import twin
from oracles.test_oracles import compare

import layerzoo as lz
from layerzoo.layers.efficient.random_feature_attention import RandomFeatureAttention
from layerzoo.ops.chunked_attention import chunked_attention
from layerzoo.ops.gated_recurrence import decayed_sums, gated_sums
from layerzoo.ops.long_convolution import exponential_sums, long_convolution
from layerzoo.tasks.optim import param_groups
from layerzoo.testing import CHECKS, check_layer
from layerzoo.testing_claims import build

REFUSED = {
    "features": ("random_feature_attention", {"num_features": 0}, "num_features: got 0, expected a number above 0. The default is 64."),
    "temperature": ("random_feature_attention", {"temperature": 0.0}, "temperature: got 0.0, expected a number above 0. The default is 1."),
    "bound": ("random_feature_attention", {"eps": -1}, "eps: got -1, expected a number above 0. The default is 0.1."),
    "gate": ("random_feature_attention", {"gated": True}, "gated: got True, expected False where the past has no order. Pass causal=True with it."),
    "window": ("scatterbrain", {"window_size": 0}, "window_size: got 0, expected a whole number >= 1. Leave it out for d features, or 32 tokens."),
    "directions": ("scatterbrain", {"num_features": 0}, "num_features: got 0, expected a whole number >= 1. Leave it out for d features"),
    "queries": ("chunked_exact", {"query_chunk_size": 0}, "query_chunk_size: got 0, expected a whole number of tokens >= 1."),
    "keys": ("chunked_exact", {"key_chunk_size": -1}, "key_chunk_size: got -1, expected a whole number of tokens >= 1. Leave it out for"),
    "state": ("s4d", {"state_dim": 0}, "state_dim: got 0, expected a whole number of complex numbers >= 1. The paper's is 32."),
    "init": ("s4d", {"init": "legs"}, "init: got 'legs', expected one of lin, inv."),
    "steps": ("s4d", {"dt_min": 0.2}, "dt_min and dt_max: got 0.2 and 0.1, expected 0 < dt_min <= dt_max. The paper's are 0.001 and 0.1."),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_options_are_refused(case):
    name, options, message = REFUSED[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        lz.create_layer(name, 4, num_heads=1, **options) if name != "s4d" else lz.create_layer(name, 4, **options)


class Gated(RandomFeatureAttention):
    """The gated form, as a layer of its own for the kit."""

    card = dataclasses.replace(RandomFeatureAttention.card, symmetry="none")

    def __init__(self, dim, *, num_heads=None, num_features=64, temperature=1.0, qkv_bias=True, causal=True, gated=True):
        super().__init__(dim, num_heads=num_heads, num_features=num_features, temperature=temperature, qkv_bias=qkv_bias, causal=causal, gated=gated)


@pytest.mark.parametrize("check", CHECKS)
def test_the_gated_form_keeps_the_contract(check):
    check_layer(Gated, checks=[check])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", ["tiny", "odd"])
def test_the_gated_form_equals_its_twin(size, masked):
    layer = build(Gated, Gated.card, size)
    with torch.no_grad():
        layer.gate.bias.sub_(4)  # from gates near 1 to gates of all kinds
    tokens = torch.randn(2, 12, layer.dim, dtype=torch.double, requires_grad=True)
    mask = torch.rand(2, 12) > 0.4 if masked else None
    compare("random_feature_attention", layer, layer(tokens, mask=mask), twin(layer, tokens, (3, 4), mask), {"input": tokens})


@pytest.mark.parametrize("length", [1, 63, 64, 65, 4200])  # beyond 64 chunks of 64 the chunks are cut too
def test_gated_sums_equal_the_loop(length):
    q, k, v = (torch.randn(2, 1, length, 3, dtype=torch.double) for _ in range(3))
    log_gate = -torch.rand(2, 1, length, dtype=torch.double) ** 8 * 50
    state, rows, states = torch.zeros(2, 1, 3, 3, dtype=torch.double), [], []
    for i in range(length):
        state = log_gate[..., i, None, None].exp() * state + k[..., i, :, None] * v[..., i, None, :]
        states.append(state.flatten(-2))
        rows.append((q[..., i, None, :] @ state).squeeze(-2))
    assert torch.allclose(gated_sums(q, k, v, log_gate), torch.stack(rows, 2), atol=1e-11)
    assert torch.allclose(decayed_sums((k[..., None] * v[..., None, :]).flatten(-2), log_gate), torch.stack(states, 2), atol=1e-11)


def test_gates_that_close_leave_no_trace_in_float32():
    """After gates of e^-30 for 4096 tokens, open ones keep all digits: no difference of sums over the past."""
    log_gate = torch.cat([torch.full((1, 1, 4096), -30.0), torch.full((1, 1, 300), -0.01)], 2).requires_grad_()
    q, k, v = (torch.rand(1, 1, 4396, 2) + 0.1 for _ in range(3))
    y = gated_sums(q, k, v, log_gate)
    exact = gated_sums(*(t.double() for t in (q, k, v, log_gate)))
    assert torch.allclose(y.double(), exact, rtol=3e-6)
    y.sum().backward()
    assert log_gate.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_random_features_approach_attention_of_unit_vectors_at_the_rate_of_a_mean(temperature):
    values, errors = [16, 64, 256, 1024], []
    x = torch.randn(2, 24, 32, dtype=torch.double)
    for m in values:
        draws = []
        for _ in range(15):
            layer = lz.create_layer("random_feature_attention", dim=32, num_heads=2, num_features=m, temperature=temperature, eps=1e-6).double()
            q, k, v = layer.split(x)
            q, k = (t / t.norm(dim=-1, keepdim=True) for t in (q, k))
            exact = layer.merge((q @ k.mT / temperature).softmax(-1) @ v)
            draws.append(((layer(x) - exact).norm() / exact.norm()).item())
        errors.append(sorted(draws)[7])
    slope = (math.log(errors[-1]) - math.log(errors[0])) / math.log(values[-1] / values[0])
    assert abs(slope + 0.5) < 0.1, errors


def test_the_normaliser_is_bounded_where_the_estimate_fails():
    layer = lz.create_layer("random_feature_attention", dim=8, num_heads=1, num_features=1, temperature=0.05)
    y = layer.normalised(torch.tensor([[3.0, -1.0], [3.0, 0.0], [3.0, 9.0]]), torch.tensor([[2.0], [2.0], [2.0]]))
    assert torch.allclose(y, torch.tensor([[15.0], [15.0], [1 / 3]]))
    q, k, v = layer.features(torch.randn(4, 50, 8))
    assert (q @ k.mT).min() < -0.5  # one direction at a low temperature: weights that are far from positive
    assert layer(torch.randn(4, 50, 8)).abs().max() < 50


@pytest.mark.parametrize("name", ["random_feature_attention", "scatterbrain"])
def test_redraw_changes_the_directions_alone(name):
    layer = lz.create_layer(name, dim=16, num_heads=2).eval()
    x, before = torch.randn(1, 70, 16), {k: v.clone() for k, v in layer.state_dict().items()}
    y = layer(x)
    layer.redraw()
    assert [k for k, v in layer.state_dict().items() if not torch.equal(v, before[k])] == ["directions"]
    assert not torch.equal(layer(x), y)


def same_weights(name, like, **options):
    """A layer with the parameters and buffers of another one."""
    layer = lz.create_layer(name, like.dim, num_heads=like.num_heads, **options).double().eval()
    layer.load_state_dict({k: v for k, v in like.state_dict().items() if k in layer.state_dict()})
    return layer


@pytest.mark.parametrize("causal", [False, True])
def test_scatterbrain_is_performer_corrected_near_the_query_and_so_nearer_to_attention(causal):
    layer = lz.create_layer("scatterbrain", dim=32, num_heads=2, num_features=32, window_size=4, causal=causal).double()
    performer = same_weights("performer", layer, num_features=32, causal=causal, eps=0.0)
    x, place = torch.randn(2, 30, 32, dtype=torch.double), torch.arange(30) // 4
    q, k, v = layer.split(x)
    with torch.no_grad():
        keys = performer.key_features(k, None)
        top = 0 if causal else performer._exponent(k).amax((-2, -1), keepdim=True)
        scale = (top + performer._exponent(q).amax(-1, keepdim=True)).exp() / 32  # what performer divides by, for either part
        low_rank = scale * (performer.query_features(q) @ keys.mT)
        near = (place[:, None] - place).abs() <= 1
        weights = low_rank + near * ((q @ k.mT / 4).exp() - low_rank)
        weights = weights.tril() if causal else weights
        assert torch.allclose(layer(x), layer.merge(weights / weights.sum(-1, keepdim=True) @ v), atol=1e-9)
        exact = same_weights("mhsa", layer, causal=causal)(x)
        assert (layer(x) - exact).norm() < 0.9 * (performer(x) - exact).norm()


@pytest.mark.parametrize("causal", [False, True])
def test_scatterbrain_neither_overflows_nor_vanishes(causal):
    """Scores of some +-1000: the features of a query are e^-500, and its exact weights beyond any number."""
    layer = lz.create_layer("scatterbrain", dim=32, num_heads=2, window_size=4, causal=causal)
    x = (60 * torch.randn(2, 40, 32)).requires_grad_()
    y = layer(x)
    y.square().mean().backward()
    assert y.isfinite().all() and x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    alone = layer(x[:, :8].detach())  # two blocks see each other exactly
    assert torch.allclose(alone, same_weights("mhsa", layer, causal=causal).float()(x[:, :8].detach()), atol=1e-3)


@pytest.mark.parametrize("name, options", [("random_feature_attention", {}), ("random_feature_attention", {"gated": True}), ("scatterbrain", {})])
def test_causal_forms_are_linear(name, options):
    layer = lz.create_layer(name, dim=32, num_heads=1, causal=True, **options)
    small, large = (lz.cost(layer, (1, n, 32)) for n in (4096, 8192))
    assert large.activation_bytes < 2.3 * small.activation_bytes < 4 * 4096 * 4096
    assert large.flops < 2.1 * small.flops


def test_scatterbrain_exports_with_causal():
    layer, x = lz.create_layer("scatterbrain", dim=16, num_heads=2, window_size=4, causal=True), torch.randn(2, 23, 16)
    assert torch.allclose(torch.export.export(layer, (x,)).module()(x), layer(x), atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("chunks", [(1, 1), (3, 5), (5, 3), (50, 50)], ids=str)
def test_chunks_change_nothing(chunks, causal, masked):
    plain = lz.create_layer("mhsa", dim=16, num_heads=2, causal=causal).double()
    layer = same_weights("chunked_exact", plain, causal=causal, query_chunk_size=chunks[0], key_chunk_size=chunks[1])
    x, mask = torch.randn(3, 17, 16, dtype=torch.double, requires_grad=True), None
    if masked:
        mask = torch.cat([torch.rand(2, 17) > 0.5, torch.zeros(1, 17, dtype=torch.bool)])
    results = []
    for m in (plain, layer):
        y = m(x, mask=mask)
        results.append((y, *torch.autograd.grad((y * torch.arange(16.0)).sum(), (x, *m.parameters()))))
    for a, b in zip(*results):
        assert torch.allclose(a, b, atol=1e-11)


class Itself(torch.nn.Module):
    """Chunked attention of its input, with itself."""

    def forward(self, x):
        return chunked_attention(x, x, x, None, False, 256, 8 * math.isqrt(x.shape[2]))


def test_beside_its_tensors_chunked_attention_takes_memory_of_the_square_root():
    n = (1024, 4096)
    peaks = [lz.cost(Itself(), (1, 1, length, 4)).activation_bytes for length in n]
    # scaled q, k as they are, v and its channel of ones, the result, one number per query
    beside = [peak - 4 * length * (4 + 5 + 4 + 1) for peak, length in zip(peaks, n)]
    assert 0 < beside[1] < 2.2 * beside[0]
    assert peaks[1] < 4096 * 4096 / 16


def test_chunked_attention_keeps_for_its_gradient_no_weights():
    layer, kept = lz.create_layer("chunked_exact", dim=32, num_heads=2, query_chunk_size=32, key_chunk_size=64), {}

    def keep(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        layer(torch.randn(1, 1024, 32))
    assert sum(kept.values()) < 4 * 1024 * 32 * 8  # of 8 tensors as large as the input; the weights of all pairs are 64


def test_chunked_attention_has_no_second_derivative_to_be_wrong():
    x = torch.randn(1, 1, 5, 3, dtype=torch.double, requires_grad=True)
    (grad,) = torch.autograd.grad(chunked_attention(x, x, x, None, False, 2, 2).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_chunked_causal_attention_skips_what_is_later():
    flops = [lz.cost(lz.create_layer("chunked_exact", dim=64, num_heads=1, query_chunk_size=128, key_chunk_size=128, causal=c), (1, 512, 64)).flops for c in (False, True)]
    assert flops[1] < 0.75 * flops[0]


@pytest.mark.parametrize("options", [{}, {"init": "inv", "dt_min": 0.01}])
def test_s4d_solves_its_equation(options):
    """s' = A s + x with x constant for dt, by the exponential of the matrix ((A, 1), (0, 0)) that holds both."""
    layer = lz.create_layer("s4d", 3, state_dim=4, causal=True, **options).double()
    weight, exponent = layer.discrete()
    kernel = exponential_sums(weight, exponent, 9)[0]
    a = torch.complex(-layer.log_decay.exp(), layer.frequency).view(3, 4)
    c = torch.view_as_complex(layer.readout)[0]
    for channel in range(3):
        for n in range(4):
            system = torch.zeros(2, 2, dtype=torch.cdouble)
            system[0] = torch.stack([a[channel, n], torch.ones((), dtype=torch.cdouble)])
            step = torch.linalg.matrix_exp(layer.log_dt.exp()[channel] * system)
            state = step[0, 1]
            for k in range(9):
                kernel[channel, k] -= 2 * (c[channel, n] * state).real
                state = step[0, 0] * state
    assert kernel.abs().max() < 1e-10


def test_s4d_starts_from_the_papers_poles():
    lin, inv = (lz.create_layer("s4d", 2, state_dim=32, init=init) for init in ("lin", "inv"))
    assert torch.allclose(-lin.log_decay.exp(), torch.tensor(-0.5))
    assert torch.allclose(lin.frequency[32:35], math.pi * torch.arange(3.0))
    assert torch.allclose(inv.frequency[:3], 64 / math.pi * torch.tensor([64 - 1, 64 / 3 - 1, 64 / 5 - 1]), rtol=1e-5)
    steps = lz.create_layer("s4d", 4000, state_dim=1).log_dt.exp()
    assert 0.001 <= steps.min() < 0.0011 and 0.09 < steps.max() <= 0.1
    assert abs((steps < 0.01).float().mean() - 0.5) < 0.04


def test_s4d_poles_and_steps_do_not_decay():
    layer = lz.create_layer("s4d", 8)
    still = [p for g in param_groups(layer, 0.05) if not g["weight_decay"] for p in g["params"]]
    assert all(any(p is q for q in still) for p in (layer.log_dt, layer.log_decay, layer.frequency))


@pytest.mark.parametrize("length", [1, 2, 3, 10, 17, 100])
def test_exponential_sums_equal_the_vandermonde_product(length):
    weight = torch.randn(2, 3, 4, dtype=torch.cdouble)
    exponent = torch.complex(-torch.rand(3, 4, dtype=torch.double), 5 * torch.randn(3, 4, dtype=torch.double))
    powers = (exponent[..., None] * torch.arange(length)).exp()
    assert torch.allclose(exponential_sums(weight, exponent, length), 2 * torch.einsum("rcn,cnl->rcl", weight, powers).real, atol=1e-11)


def test_long_convolution_reads_past_and_future_places_of_the_kernel():
    x, kernel = torch.randn(2, 3, 7, dtype=torch.double), torch.randn(3, 14, dtype=torch.double)
    expected = torch.stack([sum(kernel[:, i - j] * x[..., j] for j in range(7)) for i in range(7)], -1)
    assert torch.allclose(long_convolution(x, kernel), expected, atol=1e-12)
    past = torch.stack([sum(kernel[:, i - j] * x[..., j] for j in range(i + 1)) for i in range(7)], -1)
    assert torch.allclose(long_convolution(x, kernel[:, :7]), past, atol=1e-12)


def test_s4d_steps_equal_the_convolution():
    layer, x, state, rows = lz.create_layer("s4d", 8, causal=True).double(), torch.randn(2, 300, 8, dtype=torch.double), None, []
    for token in x.unbind(1):
        row, state = layer.step(token, state)
        rows.append(row)
    assert state.shape == (2, 8, 32) and state.dtype == torch.cdouble
    assert torch.allclose(torch.stack(rows, 1), layer(x), atol=1e-11)


def test_s4d_looks_both_ways_unless_causal():
    x = torch.randn(1, 9, 4, dtype=torch.double)
    for causal in (False, True):
        layer = lz.create_layer("s4d", 4, causal=causal).double()
        changed = x.clone()
        changed[:, 4] += 1
        moved = ((layer(changed) - layer(x)).abs().amax(-1) > 1e-9)[0].tolist()
        assert moved == [not causal] * 4 + [True] * 5


def test_s4d_makes_no_vandermonde_matrix():
    peaks = [lz.cost(lz.create_layer("s4d", 16, state_dim=s), (1, 4096, 16)).activation_bytes for s in (1, 64)]
    assert peaks[1] - peaks[0] < 4 * 16 * 64 * 4096 / 4  # a quarter of one such matrix, in float32
