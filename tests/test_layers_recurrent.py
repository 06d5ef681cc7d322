"""Memories between segments, packed vectors between layers, a hub, and learned spans."""

import math
import re

import pytest
import torch
from oracles.luna import packed_twin
from torch import nn

import layerzoo as lz
from layerzoo.ops.attention import attend
from layerzoo.ops.auxiliary import collect_auxiliary
from layerzoo.ops.segments import scores_by_distance, sinusoid, windows

XL = {"segment_length": 8, "memory_length": 12}
COMPRESSIVE = {"segment_length": 8, "memory_length": 4, "compressed_length": 3, "compression_rate": 2}
SEGMENTS = [
    ("transformer_xl", XL), ("transformer_xl", {**XL, "causal": True}), ("transformer_xl", {**XL, "memory_length": 0}),
    *(("compressive", {**COMPRESSIVE, "compression": how}) for how in ("conv", "mean", "max")), ("compressive", {**COMPRESSIVE, "causal": True})]


def create(name, dim=16, **options):
    layer = lz.create_layer(name, dim=dim, num_heads=2, **options).double()
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return layer


def segment_by_segment(layer, x, size=8):
    outputs, state = [], None
    for start in range(0, x.shape[1], size):
        y, state = layer.extend(x[:, start: start + size], state)
        outputs.append(y)
    return torch.cat(outputs, 1), state


@pytest.mark.parametrize("length", [5, 8, 29])
@pytest.mark.parametrize("name, options", SEGMENTS)
def test_segments_one_by_one_equal_all_at_once(name, options, length):
    layer, x = create(name, **options), torch.randn(2, length, 16).double().requires_grad_()
    results = [(y, *torch.autograd.grad(y.sin().sum(), [x, layer.qkv.weight])) for y in (layer(x), segment_by_segment(layer, x)[0])]
    for parallel, recurrent in zip(*results):
        assert torch.allclose(parallel, recurrent, atol=1e-10)


def test_state_is_what_the_paper_keeps_and_has_no_gradient():
    x = torch.randn(2, 40, 16).double().requires_grad_()
    memory = segment_by_segment(create("transformer_xl", **XL), x)[1]
    assert torch.equal(memory, x[:, -12:]) and not memory.requires_grad
    layer = create("compressive", **COMPRESSIVE)
    memory, compressed = segment_by_segment(layer, x)[1]
    assert torch.equal(memory, x[:, -4:]) and torch.allclose(compressed, layer.conv(x[:, 30:36].mT).mT)
    assert not memory.requires_grad and not compressed.requires_grad


@pytest.mark.parametrize("name, options", [("transformer_xl", XL), ("compressive", COMPRESSIVE)])
def test_the_past_is_seen_and_gets_no_gradient(name, options):
    layer, x = create(name, **options), torch.randn(1, 16, 16).double().requires_grad_()
    y = layer(x)
    (grad,) = torch.autograd.grad(y[:, 8:].sin().sum(), x, retain_graph=True)
    assert not grad[:, :8].any() and grad[:, 8:].all()
    with torch.no_grad():
        assert (layer(x + (torch.arange(16) < 8)[:, None]) - y)[:, 8:].abs().amax(-1).min() > 1e-4


def test_memory_ends_where_its_length_says():
    """One layer sees the compressed tokens beyond the memory and, in both, nothing before all memories."""
    for name, options, first in (("transformer_xl", XL, 12), ("compressive", COMPRESSIVE, 14)):
        layer, x = create(name, **options), torch.randn(1, 32, 16).double()
        y, seen = layer(x), []
        for t in range(24):
            z = x.clone()
            z[:, t] += 1
            seen.append(not torch.allclose(layer(z)[:, 24:], y[:, 24:], atol=1e-12))
        assert seen == [t >= first for t in range(24)]


def test_the_four_terms_of_the_score():
    layer, x = create("transformer_xl", segment_length=9), torch.randn(1, 9, 16).double()
    q, k, v = layer.split(x)
    distance = torch.arange(9)[:, None] - torch.arange(9)
    r = layer.position(sinusoid(distance.flatten().double(), 16)).view(9, 9, 2, 8).permute(2, 0, 1, 3)
    u, w = layer.content_bias, layer.position_bias
    scores = q @ k.mT + (q.unsqueeze(-2) * r).sum(-1) + u @ k.mT + (w.unsqueeze(-2) * r).sum(-1)
    assert torch.allclose(layer(x), layer.merge((scores / 8**0.5).softmax(-1) @ v), atol=1e-12)


def test_compression_is_trained_by_its_loss_alone():
    layer, x = create("compressive", **COMPRESSIVE), torch.randn(2, 29, 16).double().requires_grad_()
    with collect_auxiliary() as auxiliary:
        y = layer(x)
    task = dict(zip(("x", "qkv", "conv"), torch.autograd.grad(y.sum(), [x, layer.qkv.weight, layer.conv.weight], allow_unused=True)))
    loss = dict(zip(("x", "qkv", "conv"), torch.autograd.grad(auxiliary.loss(), [x, layer.qkv.weight, layer.conv.weight], allow_unused=True)))
    assert task["x"].any() and task["qkv"].any() and task["conv"] is None
    assert loss["x"] is None and loss["qkv"] is None and loss["conv"].any()
    layer.zero_grad()
    with torch.no_grad():
        layer.conv.weight.add_(1)
    assert not torch.allclose(layer(x), y, atol=1e-3), "y is made with the compressed vectors"


@pytest.mark.parametrize("masked", [False, True])
def test_compression_loss_compares_attention_to_what_leaves_with_attention_to_its_compression(masked):
    layer, x, mask = create("compressive", **COMPRESSIVE), torch.randn(2, 29, 16).double(), None
    reals = [list(range(29))] * 2
    if masked:
        mask = torch.rand(2, 29) > 0.3
        reals = [m.nonzero().flatten().tolist() for m in mask]
    with collect_auxiliary() as auxiliary:
        layer(x, mask)
    errors = []
    for sample, real in zip(x, reals):
        for start in range(0, len(real), 8):
            own = sample[real[start: start + 8]]
            gone = sample[real[max(0, start - 4): start - 4 + len(own) // 2 * 2]] if start or len(own) > 5 else own[:0]
            if len(gone):
                q = layer.split(own[None])[0]
                both = [attend(q, *layer.split(t[None])[1:]) for t in (gone, layer.compress(gone[None])[0])]
                errors.append((both[0] - both[1]).square().mean((0, 1, 3)))
    (loss,) = auxiliary.losses["compression"]
    assert torch.allclose(loss, torch.cat(errors).mean(), atol=1e-12)


def test_compression_loss_is_the_same_segment_by_segment():
    layer, x = create("compressive", **COMPRESSIVE), torch.randn(2, 29, 16).double()
    with collect_auxiliary() as together:
        layer(x)
    with collect_auxiliary() as apart:
        segment_by_segment(layer, x)
    weighted = [count * loss for count, loss in zip((8, 8, 8, 5), apart.losses["compression"], strict=True)]
    assert torch.allclose(together.loss(), sum(weighted) / 29, atol=1e-12)


@pytest.mark.parametrize("length", [1, 7, 29])
def test_compression_loss_always_has_the_parameters_of_the_compression(length):
    """So that two ranks of which one has too short a sequence agree."""
    layer = create("compressive", **COMPRESSIVE)
    with collect_auxiliary() as auxiliary:
        layer(torch.randn(2, length, 16).double(), torch.tensor([[True] * length, [False] * length]))
    auxiliary.loss().backward()
    assert layer.conv.weight.grad.isfinite().all() and layer.conv.weight.grad.any() == (length > 4)


@pytest.mark.parametrize("how", ["mean", "max"])
def test_pooling_has_nothing_to_train(how):
    with collect_auxiliary() as auxiliary:
        create("compressive", **{**COMPRESSIVE, "compression": how})(torch.randn(2, 29, 16).double())
    assert auxiliary.losses == {}


def test_luna_packs_by_attention_and_unpacks_by_attention():
    layer, x = create("luna", num_landmarks=3), torch.randn(2, 9, 16).double()
    def split(t):
        return t.unflatten(-1, (2, 8)).transpose(1, 2)
    keys = split(layer.pack_context(x))
    packed = attend(split(layer.pack_query(layer.landmarks.expand(2, -1, -1))), keys, keys).transpose(1, 2).flatten(2)
    keys = split(layer.context(packed))
    y, passed_on = layer.pack_and_unpack(x)
    assert torch.allclose(y, layer.proj(attend(split(layer.query(x)), keys, keys).transpose(1, 2).flatten(2)), atol=1e-12)
    assert torch.allclose(passed_on, nn.functional.layer_norm(packed + layer.landmarks, (16,)), atol=1e-12)
    assert torch.equal(y, layer(x))


def test_luna_takes_what_the_layer_before_packed():
    first, second, x = create("luna", num_landmarks=3), create("luna", num_landmarks=5), torch.randn(2, 9, 16).double()
    _, packed = first.pack_and_unpack(x)
    y, again = second.pack_and_unpack(x, packed)
    assert again.shape == packed.shape == (2, 3, 16)
    assert not torch.allclose(y, second(x), atol=1e-3)
    mask = torch.arange(9) < torch.tensor([[9], [6]])
    y, _ = second.pack_and_unpack(x.masked_fill(~mask[..., None], 0), packed, mask)
    assert torch.allclose(y[1:, :6], second.pack_and_unpack(x[1:, :6], packed[1:])[0], atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_luna_of_two_layers_is_its_twin_with_gradients(causal):
    """The second unpacks what the first passed on, so the vectors of the first are trained by both and those of the second by none."""
    first, second = (create("luna", num_landmarks=n, causal=causal) for n in (3, 5))
    grads, outputs = [], []
    for call in (lambda layer, x, packed: layer.pack_and_unpack(x, packed), packed_twin):
        x = torch.linspace(-1, 1, 2 * 7 * 16).double().sin().view(2, 7, 16).requires_grad_()
        y, packed = call(first, x, first.landmarks.expand(2, -1, -1))
        z, packed = call(second, x + y, packed)
        outputs.append((z, packed))
        used = [x, *first.parameters(), *(p for p in second.parameters() if p is not second.landmarks)]
        grads.append(torch.autograd.grad(z.square().sum() + packed.sin().sum(), used, allow_unused=True))
    for one, other in zip((*outputs[0], *grads[0]), (*outputs[1], *grads[1])):
        assert (one is None and other is None) or torch.allclose(one, other, atol=1e-10)
    names = ["x", *(n for n, _ in first.named_parameters())]
    assert [n for n, g in zip(names, grads[0]) if g is None or not g.any()] == []


def test_luna_without_a_difference_between_keys_takes_means():
    """Causal: weights of 1 = log2(1 + 2^0) pack the mean of the past."""
    x = torch.randn(2, 9, 16).double()
    for causal in (False, True):
        layer = create("luna", num_landmarks=3, causal=causal)
        with torch.no_grad():
            for p in layer.pack_query.parameters():
                p.zero_()
        mean = x.cumsum(1) / torch.arange(1, 10)[:, None] if causal else x.mean(1, keepdim=True).expand_as(x)
        packed = mean if causal else layer.pack_context(mean)
        assert torch.allclose(layer(x), layer.proj(layer.context(packed)), atol=1e-12)


def test_luna_steps_with_what_another_layer_packed():
    layer, x, packed = create("luna", num_landmarks=3, causal=True), torch.randn(2, 70, 16).double(), torch.randn(2, 4, 16).double()
    y, passed_on = layer.pack_and_unpack(x, packed)
    state, steps = None, []
    for token in x.unbind(1):
        out, state = layer.step(token, state, packed)
        steps.append(out)
    assert passed_on is packed and torch.allclose(torch.stack(steps, 1), y, atol=1e-10)


def reached(layer, x, place):
    """Which positions depend on the one at `place`."""
    z = x.clone()
    z[:, place] += torch.randn(16)
    return ((layer(z) - layer(x))[0].abs().amax(-1) > 1e-12).nonzero().flatten().tolist()


def test_star_is_a_ring_whose_ends_meet():
    layer, x = create("star", depth=1), torch.randn(1, 12, 16).double()
    y, order = layer(x), torch.arange(12).roll(5)
    assert torch.allclose(layer(x[:, order]), y[:, order], atol=1e-12)
    assert not torch.allclose(layer(x[:, torch.randperm(12)]).sum(1), y.sum(1), atol=1e-3)


def test_star_reaches_all_positions_through_the_hub():
    x = torch.randn(1, 40, 16).double()
    assert reached(create("star", depth=1), x, 20) == list(range(40))


def test_star_without_a_hub_reaches_one_neighbour_in_a_cycle():
    x = torch.randn(1, 40, 16).double()
    for depth in (1, 2, 3):
        layer = create("star", depth=depth)
        for ring in layer.rings:
            ring.see_ring = with_empty_hub(ring)
        assert reached(layer, x, 39) == sorted((39 + d) % 40 for d in range(-depth, depth + 1))


def with_empty_hub(ring):
    """see_ring with zeros for the hub, which follows the ring and its two ends in the context."""
    def see_ring(queries, context):
        place = torch.arange(context.shape[1])[:, None] == queries.shape[1] + 2
        return type(ring).see_ring(ring, queries, context.masked_fill(place, 0))

    return see_ring


def test_star_at_depth_one_is_its_formula():
    layer, x = create("star", depth=1), torch.randn(2, 7, 16).double()
    part, rows = layer.rings[0], []
    for i in range(7):
        context = torch.stack([x[:, i - 1], x[:, i], x[:, (i + 1) % 7], x[:, i], x.mean(1)], 1)
        rows.append(part.see_all(x[:, i: i + 1], context, None))
    assert torch.allclose(layer(x), torch.cat(rows, 1), atol=1e-12)


def spans(layer, *shares):
    with torch.no_grad():
        layer.spans.copy_(torch.tensor(shares))
    return layer


@pytest.mark.parametrize("causal", [False, True])
def test_heads_see_as_far_as_their_span_and_ramp(causal):
    layer, x = spans(create("adaptive_span", max_span=20, ramp_size=4, causal=causal), 0.0, 0.5), torch.randn(1, 41, 16).double()
    layer.proj = nn.Identity()
    z = x.clone()
    z[:, 20] += 1
    moved = (layer(z) - layer(x))[0].unflatten(-1, (2, 8)).abs().amax(-1) > 1e-12
    for head, reach in ((0, 3), (1, 13)):  # m(x) > 0 for x < R + z
        expected = [abs(i - 20) <= reach and (i >= 20 or not causal) for i in range(41)]
        assert moved[:, head].tolist() == expected


def test_soft_mask_is_the_papers():
    layer = spans(create("adaptive_span", max_span=20, ramp_size=4), 0.0, 0.5)
    m = layer.log_mask(1, 19, 19).exp()[:, 0]
    expected = [[min(max((4 + z - abs(j - 19)) / 4, 0), 1) for j in range(39)] for z in (0, 10)]
    assert torch.allclose(m, torch.tensor(expected).double(), atol=1e-12)


def test_no_head_is_stuck_outside_of_its_range():
    layer, x = spans(create("adaptive_span", max_span=20, ramp_size=4), -0.3, 1.2), torch.randn(1, 41, 16).double()
    y = layer(x)
    assert torch.equal(y, spans(layer, 0.0, 1.0)(x))
    spans(layer, -0.3, 0.9)
    layer(x).square().sum().backward()
    assert layer.spans.grad.all()


def test_span_loss_is_the_mean_span():
    layer = spans(create("adaptive_span", max_span=20, span_weight=0.01), -0.3, 0.5)
    with collect_auxiliary() as auxiliary:
        layer(torch.randn(1, 9, 16).double())
    assert math.isclose(auxiliary.loss().item(), 0.01 * 20 * 0.25, rel_tol=1e-6)
    auxiliary.loss().backward()
    assert layer.spans.grad.tolist() == pytest.approx([0, 0.01 * 20 / 2])


def test_far_scores_do_not_drown_near_ones():
    """The mask enters before the largest score is subtracted."""
    layer = spans(lz.create_layer("adaptive_span", dim=16, num_heads=2, max_span=20, ramp_size=4), 0.0, 0.0)
    x = torch.randn(1, 41, 16)
    x[:, 0] *= 1e4
    y = layer(x)
    assert y.isfinite().all() and torch.allclose(y[:, 20:], layer(x[:, 20 - 3:])[:, 3:], atol=1e-5)


def test_windows_are_the_rows_around_each_segment():
    x = torch.arange(1, 8).double()[:, None]
    assert windows(x, 3, 2, 1)[..., 0].tolist() == [[0, 0, 1, 2, 3, 4], [2, 3, 4, 5, 6, 7], [5, 6, 7, 0, 0, 0]]
    assert windows(x, 3, 2, -3)[..., 0].tolist() == [[0, 0], [2, 3], [5, 6]]
    assert windows(x, 3, 0, -3).shape == (3, 0, 1)


@pytest.mark.parametrize("queries, keys", [(1, 1), (1, 5), (4, 4), (3, 8)])
def test_scores_by_distance_are_the_score_of_each_distance(queries, keys):
    q, ahead = torch.randn(2, 3, queries, 5).double(), max(queries - 1, 1)
    r = torch.randn(3, keys + ahead, 5).double()  # row t stands for distance keys - 1 - t
    expected = torch.stack([torch.stack([(q[:, :, i] * r[:, j - i + queries - 1]).sum(-1) for j in range(keys)], -1) for i in range(queries)], -2)
    assert torch.allclose(scores_by_distance(q, r, keys), expected, atol=1e-12)


@pytest.mark.parametrize("name, options, message", [
    ("transformer_xl", {"segment_length": 0}, "segment_length: got 0, expected a whole number >= 1 of tokens. Take 64, say."),
    ("transformer_xl", {"memory_length": -1}, "memory_length: got -1, expected a whole number >= 0 of tokens. Take 64, or 0 for none."),
    ("transformer_xl", {"num_heads": 3}, "num_heads: got 3, expected a divisor of dim=16."),
    ("compressive", {"compressed_length": 0}, "compressed_length: got 0, expected a whole number >= 1. Choose 64 vectors, each of 4 tokens."),
    ("compressive", {"compression_rate": 0}, "compression_rate: got 0, expected a whole number >= 1. Choose 64 vectors, each of 4 tokens."),
    ("compressive", {"memory_length": 66}, "memory_length: got 66, expected a multiple of 4 tokens. Whole blocks leave the memory."),
    ("compressive", {"segment_length": 9}, "segment_length: got 9, expected a multiple of 4 tokens. Whole blocks leave the memory."),
    ("compressive", {"compression": "most_used"}, "compression: got 'most_used', expected one of conv, mean, max. Choose one of these."),
    ("luna", {"num_landmarks": 0}, "num_landmarks: got 0, expected a whole number >= 1 of vectors. The paper has 16 to 256."),
    ("luna", {"num_heads": 3}, "num_heads: got 3, expected a divisor of dim=16."),
    ("star", {"depth": 0}, "depth: got 0, expected a whole number >= 1 of cycles. Choose 2, or more to see further around."),
    ("adaptive_span", {"max_span": 0}, "max_span: got 0, expected a number >= 1 of tokens. Choose such as 64 and a ramp of 32."),
    ("adaptive_span", {"ramp_size": 0}, "ramp_size: got 0, expected a number >= 1 of tokens. Choose such as 64 and a ramp of 32."),
    ("adaptive_span", {"initial_span": 1.5}, "initial_span: got 1.5, expected a share of max_span, 0 to 1. Choose 0 to start with the ramp."),
])
def test_refusals(name, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        lz.create_layer(name, dim=16, **options)
