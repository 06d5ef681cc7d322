"""Attention through a memory: few learned points or latents, a learned memory, and keys and values that are compressed."""

import re

import pytest
import torch
from torch import nn

import layerzoo as lz

CAUSAL = [("persistent_memory", {"num_memories": 6}), ("memory_compressed", {"stride": 4})]


@pytest.mark.parametrize("name, options", [("set_attention", {"num_landmarks": 1}), ("perceiver", {"num_latents": 1, "depth": 0})])
def test_one_point_gives_all_positions_the_same(name, options):
    y = lz.create_layer(name, dim=16, num_heads=2, **options).double()(torch.randn(2, 9, 16).double())
    assert torch.allclose(y, y[:, :1].expand_as(y), atol=1e-12) and not torch.allclose(y[0], y[1], atol=1e-3)


@pytest.mark.parametrize("latent_dim", [None, 6, 40])
def test_latents_have_a_width_of_their_own(latent_dim):
    layer = lz.create_layer("perceiver", dim=16, num_latents=5, latent_dim=latent_dim, depth=3)
    assert layer.latents.shape == (5, latent_dim or 16) and len(layer.blocks) == 7
    assert layer(torch.randn(2, 16, 3, 4)).shape == (2, 16, 3, 4)


def test_external_attention_normalises_over_positions_then_over_the_memory():
    layer, x = lz.create_layer("external", dim=16, num_memories=5).double(), torch.randn(2, 9, 16).double()
    weights = (layer.query(x) @ layer.memory_keys.T).softmax(1)
    weights = weights / (1e-9 + weights.sum(2, keepdim=True))  # as in the paper's code
    assert torch.allclose(layer(x), layer.proj(weights @ layer.memory_values), atol=1e-7)


def test_external_attention_stays_an_average_where_one_position_outshines_the_others():
    layer, x = lz.create_layer("external", dim=16, num_memories=5), torch.randn(1, 9, 16)
    with torch.no_grad():
        layer.memory_values.copy_(torch.randn(16))
    x[:, 0] *= 1e4  # exp(score) of the others over its own is zero in float32
    assert torch.allclose(layer(x), layer.proj(layer.memory_values[:1]).expand(1, 9, -1), atol=1e-5)


def test_external_heads_share_the_memory():
    one, four = (lz.create_layer("external", dim=32, num_heads=h, num_memories=7) for h in (1, 4))
    assert one.memory_keys.shape == (7, 32) and four.memory_keys.shape == four.memory_values.shape == (7, 8)


def test_persistent_vectors_start_with_variance_one_where_they_are_attended():
    layer = lz.create_layer("persistent_memory", dim=64, num_heads=4)
    assert layer.num_memories == 1024
    assert abs(layer.memory_keys.std() * 16**0.5 - 1) < 0.02 and abs(layer.memory_values.std() * 1024**0.5 - 1) < 0.02


def test_persistent_vectors_are_seen_by_the_first_query():
    layer, x = lz.create_layer("persistent_memory", dim=16, num_heads=2, num_memories=6, causal=True).double(), torch.randn(2, 9, 16).double()
    y = layer(x)
    layer.causal = False
    assert torch.allclose(y[:, :1], layer(x[:, :1]), atol=1e-12) and torch.allclose(y[:, -1:], layer(x)[:, -1:], atol=1e-12)
    with torch.no_grad():
        layer.memory_values.add_(1)
    layer.causal = True
    assert (layer(x) - y).abs().amax(-1).min() > 1e-3


def test_compression_by_one_with_identity_kernels_is_plain_attention():
    layer, plain = (lz.create_layer(name, dim=16, num_heads=4, **o).double() for name, o in (("memory_compressed", {"stride": 1}), ("mhsa", {})))
    for conv in (layer.key_conv, layer.value_conv):
        nn.init.dirac_(conv.weight, groups=4)
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if "conv" not in k})
    x, mask = torch.randn(2, 16, 3, 5).double(), torch.rand(2, 15) > 0.5
    assert torch.allclose(layer(x), plain(x), atol=1e-12)
    assert torch.allclose(layer(x, mask), plain(x, mask), atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
def test_a_block_is_seen_once_it_is_complete(masked):
    layer = lz.create_layer("memory_compressed", dim=16, num_heads=2, stride=4, causal=True).double()
    x, mask = torch.randn(1, 11, 16).double(), None
    places = list(range(11))
    if masked:
        mask = torch.tensor([[True, False, True, True, True, True, False, True, True, True, True]])
        places = mask[0].nonzero().flatten().tolist()
    with torch.no_grad():
        nn.init.normal_(layer.null_value)
    y = layer(x, mask)
    for r, place in enumerate(places):
        z = x.clone()
        z[:, place] += 1
        others = (layer(z, mask) - y)[0].abs().amax(-1) > 1e-9
        others[place] = False  # its own query changes
        seen_from = r // 4 * 4 + 3  # the last of its block
        assert [p for p in places if others[p]] == [p for s, p in enumerate(places) if s >= seen_from and p != place]
    null = layer.proj(layer.null_value.flatten())
    assert torch.allclose(y[0, places[:3]], null.expand(3, -1), atol=1e-12)


class Masked(nn.Module):
    """A layer with a mask drawn from its input."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x, x[..., 0] > 0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name, options", CAUSAL)
def test_causal_forms_make_no_square_matrix(name, options, masked):
    layer = lz.create_layer(name, dim=32, num_heads=1, causal=True, **options)
    layer = Masked(layer) if masked else layer
    small, large = (lz.cost(layer, (1, n, 32)).activation_bytes for n in (4096, 8192))
    assert large < 2.05 * small < 4096 * 4096


def test_compression_saves_scores():
    flops = [lz.cost(lz.create_layer("memory_compressed", dim=32, stride=s), (1, 4096, 32)).flops for s in (1, 4)]
    assert flops[0] > 3 * flops[1]


@pytest.mark.parametrize("length", [1, 2, 4, 9])
@pytest.mark.parametrize("name, options", CAUSAL)
def test_causal_gradients_reach_every_parameter(name, options, length):
    layer = lz.create_layer(name, dim=16, num_heads=2, causal=True, dropout=0.1, **options).train()
    layer(torch.randn(2, length, 16), torch.tensor([[True] * length, [False] * length])).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("name, options", CAUSAL)
def test_causal_forms_export_and_run_in_half_precision(name, options):
    layer, x = lz.create_layer(name, dim=16, num_heads=2, causal=True, **options), torch.randn(2, 11, 16)
    assert torch.allclose(torch.export.export(layer, (x,)).module()(x), layer(x), atol=1e-6)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            y = layer(x)
        assert y.dtype == dtype and torch.allclose(y.float(), layer(x), atol=0.03)


@pytest.mark.parametrize("name, options, message", [
    ("set_attention", {"num_landmarks": 0}, "num_landmarks: got 0, expected a whole number of inducing points >= 1. The paper's code has 32."),
    ("external", {"num_memories": 0}, "num_memories: got 0, expected a whole number of keys and values >= 1. The paper's is 64."),
    ("external", {"num_heads": 3}, "num_heads: got 3, expected a divisor of dim=16."),
    ("persistent_memory", {"num_memories": -1}, "num_memories: got -1, expected a whole number >= 0 of persistent vectors. The paper's code has 1024."),
    ("perceiver", {"num_latents": 0}, "num_latents: got 0, expected a whole number >= 1. Choose latents such as 64, of width dim and depth 2."),
    ("perceiver", {"latent_dim": 0}, "latent_dim: got 0, expected a whole number >= 1. Choose latents such as 64, of width dim and depth 2."),
    ("perceiver", {"depth": -1}, "depth: got -1, expected a whole number >= 0. Choose latents such as 64, of width dim and depth 2."),
    ("perceiver", {"mlp_ratio": 0}, "mlp_ratio: got 0, expected a number that leaves a hidden channel."),
    ("perceiver", {"latent_dim": 9, "num_heads": 2}, "num_heads: got 2, expected a divisor of dim=9. Choose one of 1, 3, 9."),
    ("memory_compressed", {"stride": 0}, "stride: got 0, expected a whole number of positions >= 1. The paper's is 3."),
])
def test_refusals(name, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        lz.create_layer(name, dim=16, **options)
