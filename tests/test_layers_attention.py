"""mhsa: every option against its twin, against torch.nn.MultiheadAttention, and its refusals."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch

import layerzoo as lz

spec = importlib.util.spec_from_file_location("mhsa_twin", Path(__file__).parent / "oracles" / "mhsa.py")
oracle = importlib.util.module_from_spec(spec)
spec.loader.exec_module(oracle)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("normalize", ["softmax", "relu", "sigmoid"])
@pytest.mark.parametrize("position", ["none", "rope2d", "relative_bias", "resized_bias"])
def test_every_option_equals_the_twin(position, normalize, causal):
    grid = {"relative_bias": (3, 4), "resized_bias": (2, 5)}.get(position)
    layer = lz.create_layer(
        "mhsa", dim=15, num_heads=3, normalize=normalize, causal=causal, position="relative_bias" if grid else position, grid=grid).double()
    tokens = torch.randn(2, 12, 15, dtype=torch.double, requires_grad=True)
    mask = torch.arange(12) < torch.tensor([[12], [7]])
    for m in (None, mask):
        real = tokens if m is None else tokens * m[..., None]
        fast, slow = layer(tokens, m, grid=(3, 4)), oracle.twin(layer, real, (3, 4), m)
        assert torch.allclose(fast, slow, rtol=0, atol=1e-12)
        weights = [tokens, *layer.parameters()]
        seed = torch.randn_like(fast)
        for a, b in zip(*(torch.autograd.grad(y, weights, seed) for y in (fast, slow))):
            assert torch.allclose(a, b, rtol=0, atol=1e-11)


def test_equals_torch_with_its_weights():
    reference = torch.nn.MultiheadAttention(16, 4, batch_first=True).double()
    layer = lz.create_layer("mhsa", dim=16, num_heads=4).double()
    torch.nn.init.normal_(reference.in_proj_bias)
    layer.qkv.load_state_dict({"weight": reference.in_proj_weight, "bias": reference.in_proj_bias})
    layer.proj.load_state_dict(reference.out_proj.state_dict())
    x = torch.randn(3, 9, 16, dtype=torch.double)
    mask = torch.rand(3, 9) > 0.3
    expected = reference(x, x, x, key_padding_mask=~mask, need_weights=False)[0]
    assert torch.allclose(layer(x, mask)[mask], expected[mask], atol=1e-12)


def test_dropout_drops_in_training_alone():
    layer = lz.create_layer("mhsa", dim=16, num_heads=2, dropout=0.5)
    x = torch.randn(2, 9, 16)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize("options, message", [
    ({"num_heads": 5}, "num_heads: got 5, expected a divisor of dim=16. Choose one of 1, 2, 4, 8, 16."),
    ({"normalize": "tanh"}, "normalize: got 'tanh', expected one of softmax, relu, relu_squared, relu_sum, sigmoid, entmax, none. Choose one of these."),
    ({"position": "learned"}, "position: got 'learned', expected one that turns queries and keys or is added to scores, such as rope2d. "),
    ({"normalize": "relu", "dropout": 0.1}, "dropout: got 0.1, expected 0 with normalize='relu'. Only softmax weights can be dropped."),
    ({"position": "relative_bias"}, "grid: got None, expected (H, W), both >= 1. Pass the height and width of the map the layer is built for."),
])
def test_refusals(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        lz.create_layer("mhsa", dim=16, **options)
