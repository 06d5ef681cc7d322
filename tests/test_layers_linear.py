"""Linear attentions: what neither the kit nor the twins show."""

import math
import re

import pytest
import torch

import layerzoo as lz
from layerzoo.layers.efficient.flatten import focused
from layerzoo.ops.entmax import entmax

REFUSED = {
    "cosformer length": ("cosformer", {"max_length": -1}, "max_length: got -1, expected a number of tokens, or 0. Pass the longest sequence for `step`."),
    "flatten power": ("flatten", {"power": 0.5}, "power: got 0.5, expected a number >= 1. The paper's is 3; 1 leaves ReLU features as they are."),
    "agent size": ("agent", {"agent_size": 0}, "agent_size: got 0, expected a whole number >= 1. The paper's is 7."),
    "kernel": ("relu_linear", {"kernel_sizes": (4,)}, "kernel_sizes: got 4, expected an odd whole number >= 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_options_are_refused(case):
    name, options, message = REFUSED[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        lz.create_layer(name, 8, **options)


def test_cosformer_steps_end_where_the_cosine_would_turn_negative():
    layer = lz.create_layer("cosformer", 8, causal=True, max_length=2)
    _, state = layer.step(torch.randn(1, 8))
    _, state = layer.step(torch.randn(1, 8), state)
    message = "step: got token 3, expected at most max_length = 2 tokens. Construct the layer with a larger max_length."
    with pytest.raises(ValueError, match=re.escape(message)):
        layer.step(torch.randn(1, 8), state)


def test_cosformer_weights_fall_with_distance():
    layer = lz.create_layer("cosformer", 4, num_heads=1)
    with torch.no_grad():
        layer.qkv.weight.zero_()
        layer.qkv.bias.copy_(torch.tensor([1.0] * 8 + [0.0] * 4))  # equal queries and keys
        layer.qkv.weight[8:].copy_(torch.eye(4))
        layer.proj.weight.copy_(torch.eye(4))
        layer.proj.bias.zero_()
        tokens = torch.zeros(1, 9, 4)
        tokens[0, 0, 0] = 1
        weights = layer(tokens)[0, :, 0]
    expected = torch.tensor([math.cos(math.pi / 2 * i / 9) / sum(math.cos(math.pi / 2 * (i - j) / 9) for j in range(9)) for i in range(9)])
    assert torch.allclose(weights, expected, atol=1e-5)


def test_focused_features_keep_their_length_and_turn_to_the_largest_channel():
    x = torch.rand(5, 8, dtype=torch.double) + 0.1
    sharp = focused(x, 3.0, 0.0)
    assert torch.allclose(sharp.norm(dim=-1), x.norm(dim=-1))
    assert (sharp.amax(-1) > x.amax(-1)).all() and torch.equal(sharp.argmax(-1), x.argmax(-1))
    assert focused(1e15 * x.float(), 3.0, 0.0).isfinite().all()


@pytest.mark.parametrize("alpha", [1.0001, 1.1, 1.5, 1.9])
@pytest.mark.parametrize("length", [1, 2, 300])
def test_entmax_sums_to_one(alpha, length):
    scores = 5 * torch.randn(50, length, dtype=torch.double)
    weights = entmax(scores, torch.tensor(alpha, dtype=torch.double))
    assert torch.allclose(weights.sum(-1), torch.ones(50, dtype=torch.double), atol=1e-9)
    assert (weights >= 0).all() and torch.equal(weights.argmax(-1), scores.argmax(-1))


def test_entmax_between_softmax_and_sparsemax():
    scores = torch.tensor([[1.0, 0.8, 0.1, -1.0]], dtype=torch.double)
    near = [entmax(scores, torch.tensor(a, dtype=torch.double)) for a in (1 + 1e-6, 1.5, 2 - 1e-9)]
    assert torch.allclose(near[0], scores.softmax(-1), atol=1e-5)
    assert torch.allclose(near[2], torch.tensor([[0.6, 0.4, 0, 0]], dtype=torch.double), atol=1e-6)  # tau = (1.8 - 1) / 2
    assert [int((w > 0).sum()) for w in near] == [4, 3, 2]


def test_entmax_gradients_of_scores_and_alpha():
    scores, alpha = torch.randn(3, 7, dtype=torch.double, requires_grad=True), torch.tensor([[1.2], [1.5], [1.8]], dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(entmax, (scores, alpha))
