"""mhsa's options: each against the twin, in the limits where it is plain attention, and beside attention written in other ways."""

import math
import re

import pytest
import torch
from oracles.mhsa import twin
from torch.nn import functional as F

import layerzoo as lz
from layerzoo.layers.attention.base import SCORES
from layerzoo.ops import attention
from layerzoo.ops.attention import NORMALIZERS

POSITIONS = ("rope2d", "relative_bias", "quadratic", "learned_offsets")
EVERYTHING = {"num_kv_heads": 2, "qk_norm": "layer", "num_registers": 2, "include_self": False, "talking_heads": True}


def layer_of(noise=0.3, dim=16, num_heads=4, **options):
    """In float64, its parameters moved so that none is at a start where it does nothing."""
    layer = lz.create_layer("mhsa", dim=dim, num_heads=num_heads, **options).double().eval()
    for p in layer.parameters():
        p.data += noise * torch.randn_like(p)
    return layer


def tokens_of(batch=2, length=6, dim=16):
    return torch.randn(batch, length, dim, dtype=torch.double, requires_grad=True)


def same_weights(layer, **options):
    """mhsa with other options and the parameters of `layer` that it has too."""
    other = lz.create_layer("mhsa", dim=layer.dim, num_heads=layer.num_heads, **options).double().eval()
    other.load_state_dict({k: v for k, v in layer.state_dict().items() if k in other.state_dict()}, strict=False)
    return other


CASES = [
    *({"score": s, "normalize": n} for s in SCORES for n in NORMALIZERS),
    *({"include_self": False, "normalize": n} for n in NORMALIZERS),
    *({"talking_heads": True, "normalize": n} for n in NORMALIZERS),
    *({"talking_heads": "biased", "normalize": n, "num_registers": r} for n, r in (("softmax", 0), ("relu", 2))),
    *({"num_registers": 3, "normalize": n} for n in NORMALIZERS),
    *({"qk_norm": norm, "score": s} for norm in ("rms", "layer") for s in SCORES),
    *({"position": p, "num_registers": r, "score": s} for p in POSITIONS for r, s in ((0, "dot"), (2, "cosine"), (1, "general"))),
    *({"position": p, "score": "additive", "sink": True} for p in POSITIONS[1:]),
    *({"sink": True, "normalize": n, "num_registers": r} for n in ("softmax", "entmax") for r in (0, 2)),
    *({"num_kv_heads": h, "normalize": n} for h in (1, 2) for n in ("softmax", "relu")),
    *({**EVERYTHING, "position": p, "normalize": n, "score": s, "qkv_bias": False, "sink": n in ("softmax", "entmax")} for p, n, s in (
        ("rope2d", "softmax", "general"), ("relative_bias", "entmax", "additive"), ("quadratic", "sigmoid", "cosine"), ("learned_offsets", "relu", "dot"))),
    {**EVERYTHING, "talking_heads": False, "sink": True, "position": "relative_bias"},
]


@pytest.mark.parametrize("options", CASES, ids=lambda o: "-".join(f"{k}={v}" for k, v in o.items()))
def test_options_equal_the_twin(options):
    grid = (2, 3) if "position" in options else (2, 2)
    mask = (torch.arange(grid[0] * grid[1]) % 4 > 0)[None]
    tables = {"grid": (1, 2)} if options.get("position") in ("relative_bias", "learned_offsets") else {}  # smaller than the map
    for causal, m in ((False, None), (True, mask)):
        layer, tokens = layer_of(causal=causal, **options, **tables), tokens_of(1, mask.shape[1])
        fast, slow = layer(tokens, m, grid), twin(layer, tokens if m is None else tokens * m[..., None], grid, m)
        assert torch.allclose(fast, slow, rtol=0, atol=1e-11)
        wanted, seed = [tokens, *layer.parameters()], torch.randn_like(fast)
        for a, b in zip(*(torch.autograd.grad(y, wanted, seed, allow_unused=True, materialize_grads=True) for y in (fast, slow))):
            assert torch.allclose(a, b, rtol=1e-10, atol=1e-10)


def test_four_ways_to_write_it_agree():
    reference = torch.nn.MultiheadAttention(16, 4, batch_first=True).double()
    torch.nn.init.normal_(reference.in_proj_bias)
    layer = lz.create_layer("mhsa", dim=16, num_heads=4).double()
    layer.qkv.load_state_dict({"weight": reference.in_proj_weight, "bias": reference.in_proj_bias})
    layer.proj.load_state_dict(reference.out_proj.state_dict())
    x = tokens_of(2, 5).detach()
    q, k, v = (x @ layer.qkv.weight.T + layer.qkv.bias).detach().view(2, 5, 3, 4, 4).unbind(2)
    weights = (torch.einsum("bqhd,bkhd->bhqk", q, k) / 2).softmax(-1)
    loop = torch.zeros(2, 5, 16, dtype=torch.double)
    for b, i, h in torch.cartesian_prod(*(torch.arange(n) for n in (2, 5, 4))).tolist():
        raw = [math.exp(sum(q[b, i, h, c] * k[b, j, h, c] for c in range(4)) / 2) for j in range(5)]
        loop[b, i, 4 * h: 4 * h + 4] = sum(raw[j] / sum(raw) * v[b, j, h] for j in range(5))
    fused = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2).flatten(2)
    y = layer(x)
    assert torch.allclose(y, reference(x, x, x, need_weights=False)[0], rtol=0, atol=1e-12)
    for heads in (loop, torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2), fused):
        assert torch.allclose(y, layer.proj(heads), rtol=0, atol=1e-12)


@pytest.mark.parametrize("qk_norm, norm", [("rms", "RMSNorm"), ("layer", "LayerNorm")])
def test_normed_queries_and_keys_equal_timm(qk_norm, norm):
    timm = pytest.importorskip("timm")
    reference = timm.layers.Attention(16, 4, qkv_bias=True, qk_norm=True, norm_layer=getattr(torch.nn, norm)).double()
    reference.q_norm.eps = reference.k_norm.eps = 1e-6
    layer = layer_of(qk_norm=qk_norm)
    reference.load_state_dict(layer.state_dict())
    x = tokens_of()
    assert torch.allclose(layer(x), reference(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"normalize": "relu"}, {"score": "additive"}, {"qk_norm": "rms", "position": "rope2d"}], ids=str)
def test_shared_keys_are_copied_keys(options):
    shared = layer_of(num_kv_heads=2, **options)
    plain, state = layer_of(**options), shared.state_dict()
    for name in ("qkv.weight", "qkv.bias"):
        q, kv = state[name][:16], state[name][16:].unflatten(0, (2, 2, 4))
        state[name] = torch.cat([q, kv.repeat_interleave(2, 1).flatten(0, 2)])
    plain.load_state_dict(state)
    x = tokens_of()
    assert torch.allclose(shared(x, grid=(2, 3)), plain(x, grid=(2, 3)), rtol=0, atol=1e-12)


def test_all_heads_of_their_own_are_plain():
    layer = layer_of(num_kv_heads=4)
    assert torch.equal(same_weights(layer)(x := tokens_of()), layer(x))


@pytest.mark.parametrize("normalize", NORMALIZERS)
def test_heads_that_hear_themselves_alone_are_plain(normalize):
    layer, mask = lz.create_layer("mhsa", dim=16, num_heads=4, normalize=normalize, talking_heads=True).double(), torch.rand(2, 6) > 0.3
    assert torch.allclose(layer(x := tokens_of(), mask), same_weights(layer, normalize=normalize)(x, mask), rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"normalize": "entmax"}, {"talking_heads": True}, {"causal": True, "num_registers": 2}], ids=str)
def test_a_sink_takes_from_nothing_to_all(options):
    layer, x = layer_of(sink=True, **options), tokens_of()
    plain = same_weights(layer, **options)
    layer.sink.data.fill_(-math.inf)
    assert torch.allclose(layer(x), plain(x), rtol=0, atol=1e-12)
    layer.sink.data.fill_(1e4)
    assert torch.allclose(layer(x), layer.proj.bias.expand_as(x), rtol=0, atol=1e-12)


def test_a_sink_takes_its_share_of_the_denominator():
    layer, x = layer_of(sink=True), tokens_of()
    q, k, v = layer.split(x)
    scores = q @ k.transpose(-2, -1) / 2
    weights = scores.exp() / (scores.exp().sum(-1, keepdim=True) + layer.sink.exp()[:, None, None])
    assert torch.allclose(layer(x), layer.merge(weights @ v), rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [
    *({"normalize": n} for n in NORMALIZERS), {"score": "cosine"}, {"score": "additive"}, {"qk_norm": "layer"}, {"num_kv_heads": 1}, {"talking_heads": True},
], ids=str)
def test_registers_are_tokens_without_an_output(options):
    layer, x, mask = layer_of(num_registers=3, **options), tokens_of(), torch.rand(2, 6) > 0.3
    plain, longer = same_weights(layer, **options), torch.cat([layer.registers.expand(2, -1, -1), x], 1)
    assert torch.allclose(layer(x), plain(longer)[:, 3:], rtol=0, atol=1e-12)
    assert torch.allclose(layer(x, mask), plain(longer, F.pad(mask, (3, 0), value=True))[:, 3:], rtol=0, atol=1e-12)


def test_registers_are_persistent_memory():
    layer, x = layer_of(num_registers=3, causal=True), tokens_of()
    memory = lz.create_layer("persistent_memory", dim=16, num_heads=4, num_memories=3, causal=True).double()
    memory.load_state_dict({k: v for k, v in layer.state_dict().items() if k != "registers"}, strict=False)
    _, keys, values = layer.split(layer.registers)
    memory.memory_keys.data, memory.memory_values.data = keys[0] / 2, values[0] / 3**0.5
    assert torch.allclose(layer(x), memory(x), rtol=0, atol=1e-12)


def test_entmax_tends_to_softmax(monkeypatch):
    layer, x = layer_of(normalize="entmax"), tokens_of()
    softmax, far = same_weights(layer)(x), []
    for alpha in (1.5, 1.1, 1.01, 1.001):
        monkeypatch.setattr(attention, "ALPHA", alpha)
        far.append((layer(x) - softmax).abs().max().item())
    assert far[0] > 8 * far[2] and all(5 < a / b < 15 for a, b in zip(far[1:], far[2:])), far


def test_entmax_leaves_keys_out():
    scores = torch.tensor([[[[3.0, 1.1, 0.9, -2.0]]]], dtype=torch.double)
    assert (attention.make_weights(scores, "entmax", None) > 0).tolist() == [[[[True, True, False, False]]]]


def test_the_general_score_starts_as_the_product():
    layer = lz.create_layer("mhsa", dim=16, num_heads=4, score="general").double()
    assert torch.allclose(layer(x := tokens_of()), same_weights(layer)(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{"score": "cosine"}, {"qk_norm": "rms"}, {"qk_norm": "layer"}], ids=str)
def test_lengths_of_queries_and_keys_do_not_matter(options):
    layer, x = layer_of(**options), tokens_of()
    y = layer(x).detach()
    layer.qkv.weight.data[:32] *= 100
    layer.qkv.bias.data[:32] *= 100
    assert torch.allclose(layer(x), y, rtol=0, atol=1e-4)
    plain = same_weights(layer)
    assert not torch.allclose(plain(x), y, rtol=0, atol=1e-1)


def test_the_temperature_of_a_cosine_is_at_least_a_hundredth():
    layer, x = layer_of(score="cosine"), tokens_of()
    layer.log_scale.data.fill_(math.log(100))
    y = layer(x)
    layer.log_scale.data.fill_(9)
    assert torch.allclose(layer(x), y, rtol=0, atol=1e-12)


def test_without_weights_it_is_linear():
    layer, x = layer_of(normalize="none"), tokens_of()
    q, k, v = layer.split(x)
    assert torch.allclose(layer(x), layer.merge(q @ (k.transpose(-2, -1) @ v) / 2 / 6), rtol=0, atol=1e-12)


@pytest.mark.parametrize("normalize", NORMALIZERS)
@pytest.mark.parametrize("causal", [False, True])
def test_without_itself(normalize, causal):
    layer, x = layer_of(normalize=normalize, include_self=False, causal=causal), tokens_of(1)
    y = layer(x)
    assert torch.allclose(layer(x[:, :1]), layer.proj.bias, rtol=0, atol=1e-12), "a lone token"
    assert torch.allclose(y[:, :1], layer.proj.bias, rtol=0, atol=1e-12) is causal
    q, k, v = layer.split(x)
    for i in range(6):
        other = v.clone()
        other[:, :, i] += 1
        assert torch.equal(layer.attend(q, k, other)[0, i], layer.attend(q, k, v)[0, i])


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("options", [*({"normalize": n} for n in NORMALIZERS), {"score": "additive"}, EVERYTHING, {"sink": True}], ids=str)
def test_causal_hides_the_future(options, include_self):
    layer, x = layer_of(causal=True, **{**options, "include_self": include_self}), tokens_of(1, 7).detach()
    changed = x.repeat(7, 1, 1)
    changed[torch.arange(7), torch.arange(7)] += 10
    y, z = layer(x)[0], layer(changed)
    for t in range(7):
        assert torch.allclose(z[t, :t], y[:t], rtol=0, atol=1e-12)
        assert t == 6 or not torch.allclose(z[t, t + 1:], y[t + 1:], rtol=0, atol=1e-3)


@pytest.mark.parametrize("options", [{"normalize": n, "score": s, **EVERYTHING} for n in NORMALIZERS for s in ("dot", "additive")], ids=str)
def test_places_do_not_matter_without_a_position(options):
    layer, x, order = layer_of(**options), tokens_of(), torch.randperm(6)
    assert torch.allclose(layer(x[:, order]), layer(x)[:, order], rtol=0, atol=1e-12)


@pytest.mark.parametrize("position", POSITIONS)
def test_places_matter_with_a_position(position):
    layer, x = layer_of(position=position, grid=(2, 3)), tokens_of()
    assert layer.needs_grid and not torch.allclose(layer(x.flip(1), grid=(2, 3)), layer(x, grid=(2, 3)).flip(1), atol=1e-3)


FUSED = [
    {}, {"score": "cosine"}, {"score": "general"}, {"num_kv_heads": 1}, {"qk_norm": "rms"}, {"num_registers": 4}, {"sink": True}, {"include_self": False},
    {"score": "cosine", "num_kv_heads": 2, "num_registers": 4, "sink": True, "position": "rope2d", "causal": True}]


@pytest.mark.parametrize("options", FUSED, ids=str)
def test_what_softmax_can_do_is_fused(options):
    n, h = 32 * 32, 4
    made = ({"normalize": "none"}, {"talking_heads": True}, {"score": "additive"})
    fused, *others = (lz.cost(lz.create_layer("mhsa", dim=32, num_heads=h, **o), (1, 32, 32, 32)).activation_bytes for o in (options, *made))
    assert fused < 4 * h * n * n < min(others)


@pytest.mark.parametrize("options", [{"talking_heads": True}, {"score": "additive"}], ids=str)
def test_made_weights_are_dropped_in_training_alone(options):
    layer, x = layer_of(dropout=0.5, **options).train(), tokens_of()
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize("options", [*FUSED, *({"normalize": n} for n in NORMALIZERS), {**EVERYTHING, "score": "additive", "normalize": "entmax"}], ids=str)
def test_half_precision(options):
    layer, x = layer_of(noise=0.1, **options).float(), 3 * torch.randn(2, 16, 2, 3)
    exact = layer(x)
    for dtype, tolerance in ((torch.bfloat16, 0.1), (torch.float16, 0.01)):
        with torch.autocast("cpu", dtype):
            y = layer(x)
        assert y.dtype == dtype and ((y - exact).norm() / exact.norm()).item() < tolerance
    y = layer.to(torch.bfloat16)(x.bfloat16())
    assert y.dtype == torch.bfloat16 and y.isfinite().all()


def test_large_squares_do_not_overflow_in_half_precision():
    weights = attention.make_weights(torch.full((1, 1, 1, 4), 1000.0, dtype=torch.float16), "relu_squared", None)
    assert weights.tolist() == [[[[250000.0] * 4]]]


@pytest.mark.slow
@pytest.mark.parametrize("options", [
    {**EVERYTHING, "position": "quadratic", "score": "cosine", "sink": True}, {"score": "additive", "normalize": "entmax", "causal": True},
    {"num_kv_heads": 2, "sink": True, "num_registers": 2, "include_self": False, "score": "general"}], ids=str)
def test_compiles_and_exports(options):
    torch._dynamo.reset()
    layer, x = layer_of(**options), torch.randn(2, 16, 2, 3, dtype=torch.double)
    assert torch.allclose(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x), rtol=0, atol=1e-12)
    assert torch.allclose(torch.export.export(layer, (x,)).module()(x), layer(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("options, message", [
    ({"score": "l2"}, "score: got 'l2', expected one of dot, cosine, additive, general. Choose one of these."),
    ({"normalize": "max"}, "normalize: got 'max', expected one of softmax, relu, relu_squared, relu_sum, sigmoid, entmax, none. Choose one of these."),
    ({"qk_norm": "batch"}, "qk_norm: got 'batch', expected one of none, rms, layer. Choose one of these."),
    ({"num_kv_heads": 3}, "num_kv_heads: got 3, expected a divisor of num_heads=4. With 1 all heads share a key and a value."),
    ({"num_kv_heads": 0}, "num_kv_heads: got 0, expected a divisor of num_heads=4. With 1 all heads share a key and a value."),
    ({"num_registers": -1}, "num_registers: got -1, expected a whole number >= 0 of learned tokens. Four are usual."),
    ({"normalize": "entmax", "dropout": 0.1}, "dropout: got 0.1, expected 0 with normalize='entmax'. Only softmax weights can be dropped."),
    ({"normalize": "relu", "sink": True}, "sink: got True, expected False with normalize='relu'. Only weights that sum to one leave it a share."),
    *(({"position": p},
       f"position: got '{p}', expected one that turns queries and keys or is added to scores, such as rope2d. "
       "An absolute encoding is added to the map: give it to the model.") for p in ("learned", "sincos2d", "conditional")),
    ({"position": "rope2d", "score": "additive"},
     "position: got 'rope2d', expected one that is added to scores, with score='additive'. "
     "What is turned tells its offset in products alone: choose relative_bias."),
    ({"position": "rope"}, "positions name: got 'rope', expected a known name such as rope2d, "),
    *(({"position": p}, "grid: got None, expected (H, W), both >= 1. Pass the height and width of the map the layer is built for.")
      for p in ("relative_bias", "learned_offsets")),
], ids=str)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        lz.create_layer("mhsa", dim=16, num_heads=4, **options)
