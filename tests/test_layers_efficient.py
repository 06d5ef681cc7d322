"""Efficient and hybrid attention: the shared recurrence, draws of random features, and refusals."""

import re

import pytest
import torch

import layerzoo as lz
from layerzoo.layers.efficient.nystrom import pseudo_inverse, segment_means
from layerzoo.layers.efficient.performer import orthogonal_gaussian
from layerzoo.layers.hybrid.gated_positional_attention import kernel_offsets
from layerzoo.ops.linear_recurrence import CHUNK, causal_linear_attention, causal_sums, recurrent_step


@pytest.mark.parametrize("length", [1, CHUNK - 1, CHUNK, 2 * CHUNK + 5])
def test_causal_sums_equal_the_loop(length):
    q, k = (torch.rand(2, 3, length, 4, dtype=torch.double) for _ in range(2))
    v = torch.randn(2, 3, length, 5, dtype=torch.double)
    weights = (q @ k.transpose(-2, -1)).tril()
    assert torch.allclose(causal_sums(q, k, v), weights @ v, atol=1e-12)
    expected = weights @ v / (weights.sum(-1, keepdim=True) + 1e-6)
    assert torch.allclose(causal_linear_attention(q, k, v, 1e-6), expected, atol=1e-12)
    state, rows = None, []
    for i in range(length):
        y, state = recurrent_step(q[..., i, :], k[..., i, :], v[..., i, :], state, 1e-6)
        rows.append(y)
    assert torch.allclose(torch.stack(rows, 2), expected, atol=1e-12)


def test_causal_form_makes_no_square_matrix():
    layer = lz.create_layer("linear_attention", dim=32, num_heads=1, causal=True)
    small, large = (lz.cost(layer, (1, n, 32)) for n in (4096, 8192))
    assert large.activation_bytes < 2.05 * small.activation_bytes < 4 * 4096 * 4096
    assert large.flops < 2.05 * small.flops


@pytest.mark.parametrize("name, options", [
    ("linear_attention", {}), ("performer", {}), ("random_feature_attention", {}), ("random_feature_attention", {"gated": True})])
def test_steps_equal_the_parallel_form_under_autocast(name, options):
    layer = lz.create_layer(name, dim=32, num_heads=2, causal=True, **options)
    tokens, state, rows = 3 * torch.randn(2, 100, 32), None, []
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(tokens)
        for token in tokens.unbind(1):
            row, state = layer.step(token, state)
            rows.append(row)
    assert all(s.dtype == torch.float32 for s in state)
    assert (torch.stack(rows, 1) - y).float().norm() < 2e-3 * y.float().norm()  # sums in bfloat16 differ by 3e-3 and more


def test_directions_are_orthogonal_in_blocks_and_gaussian_in_length():
    w = orthogonal_gaussian(4096, 16)
    gram = w[:16] @ w[:16].T
    assert torch.allclose(gram, gram.diag().diag(), atol=1e-4)
    assert abs(w.square().sum(1).mean() - 16) < 0.5
    assert w.view(256, 16, 16).mean(0).abs().max() < 0.3  # each place of a block is centred: six standard errors are 0.375


def test_redraw_changes_the_directions_alone():
    layer = lz.create_layer("performer", dim=16, num_heads=2).eval()
    x, before = torch.randn(1, 9, 16), {k: v.clone() for k, v in layer.state_dict().items()}
    y = layer(x)
    layer.redraw()
    assert [k for k, v in layer.state_dict().items() if not torch.equal(v, before[k])] == ["directions"]
    assert not torch.equal(layer(x), y)


def test_nystrom_does_not_see_padding_between_rows():
    layer, x, mask = lz.create_layer("nystrom", dim=16, num_heads=2, num_landmarks=4).double(), torch.randn(2, 16, 8, 9).double(), torch.zeros(8, 9) > 0
    mask[:5, :6] = True
    padded = layer(x, mask.flatten().expand(2, -1))[..., :5, :6]
    assert torch.allclose(padded, layer(x[..., :5, :6].contiguous()), atol=1e-12)


@pytest.mark.parametrize("count, length", [(1, 1), (4, 4), (4, 10), (7, 10), (9, 5)])
def test_segments_are_as_equal_as_can_be(count, length):
    mask = torch.tensor([[True] * length + [False] * 3, [False] * 2 + [True] * length + [False]])
    segments = segment_means(mask, count, torch.zeros(2, length + 3, 1, dtype=torch.double))
    used = segments.sum(-1) > 0
    assert used.sum(1).tolist() == [min(count, length)] * 2
    assert torch.allclose(segments.sum(-1)[used], torch.ones(1, dtype=torch.double)) and not segments[(~mask)[:, None].expand_as(segments)].any()
    sizes = (segments > 0).sum(-1)[used]
    assert sizes.sum() == 2 * length and sizes.max() - sizes.min() <= 1


def test_pseudo_inverse_converges():
    a = torch.randn(2, 3, 8, 8, dtype=torch.double).softmax(-1)
    assert torch.allclose(pseudo_inverse(a, 60), torch.linalg.pinv(a), rtol=1e-6)


def test_gated_heads_start_as_the_places_of_a_kernel():
    layer = lz.create_layer("gated_positional_attention", dim=18, num_heads=9, locality_strength=40.0)
    torch.nn.init.constant_(layer.gate, 1e4)
    torch.nn.init.eye_(layer.proj.weight)
    torch.nn.init.zeros_(layer.proj.bias)
    x = torch.randn(1, 18, 6, 7)
    y = layer(x)
    for head in range(9):
        dy, dx = head // 3 - 1, head % 3 - 1
        channels = slice(2 * head, 2 * head + 2)
        assert torch.allclose(y[:, channels, 1:-1, 1:-1], x[:, channels, 1 + dy: 5 + dy, 1 + dx: 6 + dx], atol=1e-5)
    assert kernel_offsets(4)[:, :2].tolist() == [[-1, -1], [1, -1], [-1, 1], [1, 1]]


def test_gated_places_are_scored_beyond_the_range_of_float16():
    layer = lz.create_layer("gated_positional_attention", dim=16, num_heads=2)
    torch.nn.init.constant_(layer.gate, 1e4)
    layer.offset_score.data[:, 2] = 1e-5  # far places first: 1e-5 times squares of up to 299
    x = torch.randn(1, 16, 2, 300)
    with torch.autocast("cpu", torch.float16):
        y = layer(x)
    assert torch.allclose(y.float(), layer(x), atol=1e-2)


def test_gated_place_weights_are_shared_by_the_batch():
    layer = lz.create_layer("gated_positional_attention", dim=16, num_heads=2)
    one, five = (lz.cost(layer, (batch, 16, 32, 32)).activation_bytes for batch in (1, 5))
    assert (five - one) / 4 < 2 * 1024**2 * 4 / 4  # a sample adds less than a quarter of the weights, (h, N, N) in float32


@pytest.mark.parametrize("name, options, message", [
    ("performer", {"num_features": 0}, "num_features: got 0, expected a whole number >= 1. Leave it out for d ln d."),
    ("nystrom", {"num_landmarks": 0}, "num_landmarks: got 0, expected a whole number >= 1. The paper's are 64 landmarks and 6 iterations."),
    ("nystrom", {"num_iterations": -1}, "num_iterations: got -1, expected a whole number >= 1. The paper's are 64 landmarks and 6 iterations."),
    ("nystrom", {"conv_kernel": 4}, "conv_kernel: got 4, expected an odd number of tokens, or 0 for none. Choose one such as 33."),
    ("nystrom", {"conv_kernel": -3}, "conv_kernel: got -3, expected an odd number of tokens, or 0 for none. Choose one such as 33."),
    ("linformer", {"grid": (3, 0)}, "grid: got (3, 0), expected (H, W), both >= 1."),
    ("linformer", {"grid": (3, 3), "num_landmarks": 0}, "num_landmarks: got 0, expected a whole number >= 1. Choose one such as 64."),
    ("linear_attention", {"num_heads": 3}, "num_heads: got 3, expected a divisor of dim=16. Choose one of 1, 2, 4, 8, 16."),
])
def test_refusals(name, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        lz.create_layer(name, dim=16, **options)
