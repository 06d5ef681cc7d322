"""Convolution is attention: equal outputs for every kind of convolution, and back again."""

import itertools
import re

import pytest
import torch
from torch import nn

import layerzoo as lz
from layerzoo.models.convert import _around, sharpness

KINDS = [
    *({"kernel_size": k, "padding": k // 2} for k in (1, 3, 5, 7)), {"kernel_size": 3}, {"kernel_size": 3, "padding": 2, "dilation": 2},
    {"kernel_size": 3, "padding": 1, "groups": 2}, {"kernel_size": 3, "padding": 1, "groups": 4}, {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": 7, "padding": 3, "stride": 4}, {"kernel_size": 4, "stride": 4}, {"kernel_size": (2, 5), "padding": "same"},
    {"kernel_size": 3, "padding": (0, 2), "stride": (1, 3), "dilation": (2, 1)},
    *({"kernel_size": k, "padding": k // 2, "padding_mode": mode} for k, mode in itertools.product((3, 5), ("reflect", "circular", "replicate")))]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("options", KINDS, ids=str)
def test_attention_equals_the_convolution(options, bias):
    conv = nn.Conv2d(4, 8, bias=bias, **options)
    layer, x = lz.conv_to_attention(conv), torch.randn(2, 4, 11, 13, requires_grad=True)
    y, expected = layer(x), conv(x)
    assert y.shape == expected.shape and (y - expected).abs().max() <= 1e-5
    weight = torch.randn_like(y)
    grads = [torch.autograd.grad((out * weight).sum(), [x, *m.parameters()]) for out, m in ((y, layer.conv), (expected, conv))]
    assert all((a - b).abs().max() <= 1e-4 for a, b in zip(*grads))


def test_it_is_attention_over_all_pairs():
    conv = nn.Conv2d(3, 5, 3, padding=1, stride=2).double()
    layer, x = lz.conv_to_attention(conv), torch.randn(1, 3, 7, 6, dtype=torch.double)
    padded = layer.pad(x)
    weights = layer.attention(padded.shape[2:])
    assert weights.shape == (9, 4 * 3, 9 * 8) and torch.allclose(weights.sum(-1), torch.ones(9, 12, dtype=torch.double))
    heads = weights @ padded.flatten(2).mT  # one softmax for each head and query
    y = torch.einsum("hqi,oih->oq", heads, conv.weight.flatten(2)) + conv.bias[:, None]
    assert torch.allclose(y.view(1, 5, 4, 3), conv(x), atol=1e-12)


def test_error_falls_with_alpha_and_the_chosen_one_is_enough():
    conv, x = nn.Conv2d(4, 4, 3, padding=1).double(), torch.randn(1, 4, 9, 9, dtype=torch.double)
    errors = [(lz.conv_to_attention(conv, alpha)(x) - conv(x)).abs().max().item() for alpha in (1, 2, 5, 12, 25)]
    assert errors == sorted(errors, reverse=True) and errors[0] > 0.1 and errors[-1] < 1e-9
    assert [round(sharpness(t), 1) for t in (torch.float16, torch.float32, torch.float64)] == [11.1, 20.1, 40.2]
    assert (lz.conv_to_attention(conv)(x) - conv(x)).abs().max() < 1e-13
    assert (lz.conv_to_attention(conv.bfloat16())(x.bfloat16()) - conv(x.bfloat16())).abs().max() < 0.05


def test_a_whole_resnet18_gives_the_same_logits():
    model, x = lz.create_model("resnet18", num_classes=10, img_size=32).eval(), torch.randn(2, 3, 32, 32)
    converted = lz.conv_to_attention(model)
    assert not any(isinstance(m, nn.Conv2d) and "conv.conv" not in n and not n.endswith(".conv") for n, m in converted.named_modules())
    with torch.no_grad():
        assert (converted(x) - model(x)).abs().max() <= 1e-4
        back = lz.attention_to_conv(converted)
        assert torch.equal(back(x), model(x)) and back.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("name", ["quadratic_attention", "quadratic_generalized"])
def test_heads_on_places_become_a_kernel(name):
    layer = lz.create_layer(name, dim=6).double()
    with torch.no_grad():
        layer.position.centers.copy_(torch.cartesian_prod(*[torch.arange(-1.0, 2.0)] * 2))
        layer.position.spreads.mul_(12)
    conv, x = lz.attention_to_conv(layer), torch.randn(2, 6, 8, 9, dtype=torch.double)
    assert conv.kernel_size == (3, 3) and torch.allclose(conv(x), layer(x), atol=1e-9)  # at the border as well


@pytest.mark.parametrize("layer", ["quadratic_attention", "quadratic_generalized", {"name": "learned_relative", "grid": (5, 5)}], ids=str)
def test_scores_around_one_place_are_those_of_the_encoding(layer):
    position = lz.registry.LAYERS.create(layer, 4, num_heads=3).position.double()
    assert torch.allclose(_around(position, 7), position.bias((7, 7))[:, 24], atol=1e-12)


def test_blurred_heads_become_a_larger_kernel_right_inside():
    layer, x = lz.create_layer("quadratic_attention", dim=4, num_heads=3).double(), torch.randn(1, 4, 31, 31, dtype=torch.double)
    with torch.no_grad():
        layer.position.centers.copy_(torch.tensor([[0.0, 0.4], [1.3, -2.0], [0.0, 0.0]]))
    conv = lz.attention_to_conv(layer, mass=1 - 1e-9)
    r = conv.kernel_size[0] // 2
    assert 5 <= r <= 12 and torch.allclose(conv(x)[..., r:-r, r:-r], layer(x)[..., r:-r, r:-r], atol=1e-7)


def test_a_model_of_quadratic_attention_becomes_one_of_convolutions():
    model = lz.create_model("attention_cnn", num_classes=10, img_size=32, options={"dim": 16, "depth": 2}).eval()
    back = lz.attention_to_conv(model)
    assert sum(isinstance(m, nn.Conv2d) for m in back.modules()) == 3 and back(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_moved_centres_are_rounded_while_they_are_near():
    layer = lz.conv_to_attention(nn.Conv2d(2, 2, 3, padding=1))
    with torch.no_grad():
        layer.position.centers.add_(0.3)
        assert torch.equal(lz.attention_to_conv(layer).weight, layer.conv.weight)
        layer.position.centers[0] += 1
        merged = lz.attention_to_conv(layer).weight
        assert not merged[..., 0, 0].any() and torch.allclose(merged[..., 1, 1], layer.conv.weight[..., 1, 1] + layer.conv.weight[..., 0, 0])
        layer.position.centers[0] -= 3
    with pytest.raises(ValueError, match=re.escape("centres: got some beyond the 3 x 3 kernel, expected all within half a place of it. Convert the layer before")):
        lz.attention_to_conv(layer)


@pytest.mark.parametrize("call, message", [
    (lambda: lz.conv_to_attention(nn.Linear(2, 2)), "module: got Linear, expected nn.Conv2d, or a module that holds some. Pass the layer or the model itself."),
    (lambda: lz.conv_to_attention(nn.Conv2d(2, 2, 1), alpha=0), "alpha: got 0, expected a number > 0. Leave it out for one that is enough for equality."),
    (lambda: lz.attention_to_conv(nn.Linear(2, 2)), "module: got Linear, expected attention by places alone, or a module that holds some. "),
    (lambda: lz.attention_to_conv(lz.create_layer("quadratic_attention", dim=2), mass=1.0), "mass: got 1.0, expected a number in (0, 1). Use 0.999."),
    (lambda: lz.attention_to_conv(lz.create_layer("learned_relative", dim=2, grid=(2, 2), content=True)),
     "layer: got learned_relative with content, expected attention by places alone. Contents have no kernel."),
    (lambda: lz.conv_to_attention(nn.Conv2d(2, 2, 3))(torch.randn(1, 3, 4, 4)),
     "input of ConvAsAttention: got (1, 3, 4, 4), expected a map (B, 2, H, W). Check the channels and the layout."),
    (lambda: lz.conv_to_attention(nn.Conv2d(2, 2, 3))(torch.randn(1, 2, 4, 2)),
     "input of ConvAsAttention: got 2 places along axis 3, padding included, expected more than 2. Pass a larger map, as the convolution needs too.")])
def test_refused(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_wide_heads_are_refused_below_one():
    with pytest.raises(ValueError, match=re.escape("num_heads: got 0, expected a whole number >= 1. The paper has 9, for kernels of 3 x 3.")):
        lz.create_layer("quadratic_attention", dim=4, num_heads=0)


def test_the_paper_counts_of_parameters():
    layers = ["quadratic_attention", "learned_relative", {"name": "learned_relative", "content": True}]
    models = [lz.create_model("attention_cnn", num_classes=10, img_size=32, layer=layer) for layer in layers]
    assert [round(sum(p.numel() for p in m.parameters()) / 1e6, 1) for m in models] == [12.1, 12.3, 29.6]
