"""Hybrids of convolution and attention: weights of public code, what they refuse, and what neither the kit nor the twins show."""

import importlib
import re

import pytest
import torch
from timm.layers.bottleneck_attn import BottleneckAttn
from timm.layers.lambda_layer import LambdaLayer
from timm.models.levit import Attention
from torch import nn
from torch.nn import functional as F

import layerzoo as lz
from layerzoo.ops.local_sums import local_sums
from layerzoo.ops.relative_logits import RelativeLogits, pair_scores

REFUSED = {
    "augmented kernel": ("attention_augmented_conv", {"kernel_size": 2}, "kernel_size: got 2, expected an odd whole number >= 1."),
    "augmented heads": (
        "attention_augmented_conv", {"num_heads": 0},
        "num_heads: got 0, expected a whole number of heads >= 1. The paper's are 8."),
    "augmented ratio": (
        "attention_augmented_conv", {"key_ratio": 0.0},
        "key_ratio and value_ratio: got 0.0 and 0.1, expected two numbers above 0. The paper's are 0.2 and 0.1."),
    "augmented values": (
        "attention_augmented_conv", {"num_heads": 4, "value_ratio": 1.0},
        "channels of attention: got 16, expected fewer than dim=16, so that the convolution has some. "
        "Choose a smaller value_ratio or num_heads."),
    "botnet heads": ("botnet", {"num_heads": 3}, "num_heads: got 3, expected a divisor of dim=16. Choose one of 1, 2, 4, 8, 16."),
    "botnet grid": ("botnet", {"grid": (0, 3)}, "grid: got (0, 3), expected (H, W), both >= 1."),
    "levit": (
        "levit", {"num_heads": 2, "value_ratio": 0.01},
        "num_heads, key_dim and value_ratio: got 2, 16 and 0.01, expected at least one head, "
        "one channel of its keys and one of its values. The paper's are 4, 16 and 2."),
    "cmt": ("cmt", {"reduction": 0}, "reduction: got 0, expected a whole number of positions >= 1. Choose 1 to keep every key."),
    "cvt kernel": ("cvt_attention", {"kernel_size": 4}, "kernel_size: got 4, expected an odd whole number >= 1."),
    "cvt stride": ("cvt_attention", {"stride": 0}, "stride: got 0, expected a whole number of positions >= 1. Choose 1 to keep every key."),
    "lambda kernel": ("lambda_layer", {"kernel_size": 4}, "kernel_size: got 4, expected an odd whole number >= 1."),
    "lambda depth": (
        "lambda_layer", {"intra_depth": 0},
        "key_dim and intra_depth: got 16 and 0, expected two whole numbers >= 1. The paper's are 16 and 1."),
    "acmix kernel": ("acmix", {"kernel_size": 4}, "kernel_size: got 4, expected an odd whole number >= 1."),
    "acmix shift": ("acmix", {"shift_size": 2}, "shift_size: got 2, expected an odd whole number >= 1."),
    "cot groups": (
        "contextual_transformer", {"num_groups": 3},
        "num_groups: got 3, expected a divisor of dim=16. Leave it out for 4 or the most below."),
    "cot reduction": ("contextual_transformer", {"reduction": 0.5}, "reduction: got 0.5, expected a number >= 1. The paper's is 2."),
}
NEED_GRID = ("attention_augmented_conv", "botnet", "cmt", "levit")


@pytest.mark.parametrize("case", REFUSED)
def test_bad_options_are_refused(case):
    name, options, message = REFUSED[case]
    if name in NEED_GRID:
        options = {"grid": (4, 4), **options}
    with pytest.raises(ValueError, match=re.escape(message)):
        lz.create_layer(name, 16, **options)


def shaken(module):
    """In double and eval, with parameters and running statistics of a trained net: none is zero or one."""
    with torch.no_grad():
        for name, t in [*module.named_parameters(), *module.named_buffers()]:
            if t.is_floating_point():
                t.uniform_(0.5, 1.5) if "var" in name else t.normal_(std=0.3)
    module.double().eval()
    return module


def folded(weight, bn):
    """Weight and bias of a linear map with the batch norm that follows it."""
    scale = bn.weight / (bn.running_var + bn.eps).sqrt()
    return weight.flatten(1) * scale[:, None], bn.bias - bn.running_mean * scale


@torch.no_grad()
def test_botnet_takes_the_weights_of_timm():
    theirs = shaken(BottleneckAttn(32, feat_size=(5, 4), num_heads=4, qkv_bias=True, scale_pos_embed=True))
    layer = lz.create_layer("botnet", 32, grid=(5, 4), num_heads=4, qkv_bias=True).double()
    layer.qkv.weight.copy_(theirs.qkv.weight.flatten(1))
    layer.qkv.bias.copy_(theirs.qkv.bias)
    layer.relative.rows.copy_(theirs.pos_embed.height_rel)
    layer.relative.columns.copy_(theirs.pos_embed.width_rel)
    nn.init.eye_(layer.proj.weight)
    nn.init.zeros_(layer.proj.bias)
    x = torch.randn(2, 32, 5, 4, dtype=torch.double)
    assert torch.allclose(layer(x), theirs(x), rtol=0, atol=1e-10)


@torch.no_grad()
def test_lambda_layer_takes_the_weights_of_timm():
    theirs = shaken(LambdaLayer(24, num_heads=4, dim_head=5, r=5))
    nn.init.zeros_(theirs.conv_lambda.bias)  # the paper has none
    layer = lz.create_layer("lambda_layer", 24, num_heads=4, key_dim=5, kernel_size=5, qkv_bias=True).double()
    q, k, v = theirs.qkv.weight.split((20, 5, 6))
    parts = [folded(q, theirs.norm_q), (k.flatten(1), torch.zeros(5)), folded(v, theirs.norm_v)]
    layer.qkv.weight.copy_(torch.cat([weight for weight, _ in parts]))
    layer.qkv.bias.copy_(torch.cat([bias for _, bias in parts]))
    layer.offsets.weight.copy_(theirs.conv_lambda.weight.squeeze(-1))
    x = torch.randn(2, 24, 6, 7, dtype=torch.double)
    assert torch.allclose(layer(x), theirs(x), rtol=0, atol=1e-10)


@torch.no_grad()
def test_levit_takes_the_weights_of_timm():
    theirs = shaken(Attention(30, key_dim=4, num_heads=4, attn_ratio=2.0, resolution=(3, 5), act_layer=nn.Hardswish))
    layer = lz.create_layer("levit", 30, grid=(3, 5), num_heads=4, key_dim=4).double()
    for linear, norm in ((layer.qkv, theirs.qkv), (layer.proj, theirs.proj.ln)):
        weight, bias = folded(norm.linear.weight, norm.bn)
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
    layer.table.copy_(theirs.attention_biases.unflatten(1, (3, 5)))
    tokens = torch.randn(2, 15, 30, dtype=torch.double)
    assert torch.allclose(layer(tokens), theirs(tokens), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["attention_augmented_conv", "botnet"])
def test_relative_logits_make_no_matrix(name):
    layer = lz.create_layer(name, 16, grid=(64, 64), num_heads=2)
    assert lz.cost(layer, (1, 16, 64, 64)).activation_bytes < 2 * 4096**2  # half a matrix of one of the two heads


def test_relative_logits_know_the_offset_alone():
    logits = RelativeLogits(4, (3, 5)).double()
    q, k, v = (torch.randn(1, 2, 15, 4, dtype=torch.double) for _ in range(3))
    y = logits(torch.zeros_like(q), k, v, (3, 5))
    assert torch.allclose(y, v.mean(2, keepdim=True).expand_as(y))  # all scores are the query's
    places = torch.eye(15, dtype=torch.double).expand(1, 2, -1, -1)
    weights = logits(q[:, :, :1].expand_as(q), torch.zeros_like(k), places, (3, 5))[0, 0]  # wider values than keys
    odds = weights.log() - weights.log().diagonal()[:, None]  # against the place of the query
    assert torch.allclose(odds[7, 8], odds[0, 1]) and torch.allclose(odds[7, 2], odds[12, 7]) and not torch.allclose(odds[7, 8], odds[7, 6])


def test_embeddings_of_another_map_keep_their_ends():
    logits = RelativeLogits(4, (3, 5))
    for grid in ((5, 5), (2, 9)):
        other = RelativeLogits(4, grid)
        q, k, v = (torch.randn(1, 1, grid[0] * grid[1], 4) for _ in range(3))
        with torch.no_grad():
            for mine, table in ((other.rows, logits.rows), (other.columns, logits.columns)):
                mine.copy_(F.interpolate(table.T[None], size=len(mine), mode="linear", align_corners=True)[0].T)
        assert torch.allclose(logits(q, k, v, grid), other(q, k, v, grid), atol=1e-6)


def test_pair_scores_read_row_by_row():
    table = torch.arange(12.0).view(1, 3, 4)
    rows, columns = torch.tensor([[0, 1, 2]]), torch.tensor([[0, 3], [2, 1]])
    scores = pair_scores(table, rows, columns)
    assert scores.tolist() == [[[0, 3, 4, 7, 8, 11], [2, 1, 6, 5, 10, 9]]]


def test_convolution_and_attention_have_channels_of_their_own():
    layer = lz.create_layer("attention_augmented_conv", 20, grid=(9, 9), num_heads=2, value_ratio=0.4)
    x = torch.randn(1, 20, 9, 9, requires_grad=True)
    y = layer(x)
    for channels, seen in ((slice(12), 9), (slice(12, 20), 81)):
        (reach,) = torch.autograd.grad(y[0, channels, 4, 4].sum(), x, retain_graph=True)
        assert (reach.abs().sum((0, 1)) > 0).sum() == seen
    assert torch.allclose(y[:, :12], layer.conv(x), atol=1e-6)


@pytest.mark.parametrize("branch, side", [("alpha", 5), ("beta", 3)])
def test_acmix_reaches_as_far_as_its_kernels(branch, side):
    layer = lz.create_layer("acmix", 8, num_heads=2, kernel_size=5, shift_size=3)
    nn.init.zeros_(layer.beta if branch == "alpha" else layer.alpha)
    x = torch.randn(1, 8, 18, 11, requires_grad=True)
    for row, column in ((0, 0), (7, 8), (8, 7), (17, 5)):
        (reach,) = torch.autograd.grad(layer(x)[0, :, row, column].sum(), x)
        rows, columns = (
            [p for p in range(n) if abs(p - at) <= side // 2] for n, at in ((18, row), (11, column)))
        seen = reach.abs().sum((0, 1)) > 0
        assert seen.sum() == len(rows) * len(columns) and seen[rows][:, columns].all()


def test_acmix_starts_with_shifts():
    layer = lz.create_layer("acmix", 4, num_heads=1)
    nn.init.constant_(layer.combine.weight, 1)
    qkv = torch.randn(1, 30, 12)
    total = qkv.unflatten(2, (3, 4)).sum(2).mT.unflatten(2, (5, 6))
    expected = 9 * F.avg_pool2d(total, 3, stride=1, padding=1)
    assert torch.allclose(layer.convolve(qkv, (5, 6)).mT.unflatten(2, (5, 6)), expected, atol=1e-5)


def test_lambda_layer_without_offsets_has_no_order():
    layer = lz.create_layer("lambda_layer", 8, num_heads=2, key_dim=3, kernel_size=5).double()
    x, order = torch.randn(1, 12, 8, dtype=torch.double), torch.randperm(12)
    assert not torch.allclose(layer(x[:, order], grid=(3, 4)), layer(x, grid=(3, 4))[:, order])
    nn.init.zeros_(layer.offsets.weight)
    assert torch.allclose(layer(x[:, order], grid=(3, 4)), layer(x, grid=(3, 4))[:, order])


def test_contexts_of_the_contextual_transformer():
    layer = lz.create_layer("contextual_transformer", 16, num_heads=2)
    x = torch.randn(2, 16, 6, 5)
    nn.init.constant_(layer.fuse[2].bias, 1e4)
    assert torch.allclose(layer(x), F.conv2d(x, layer.key.weight, padding=1, groups=4).relu(), atol=1e-5)
    nn.init.constant_(layer.fuse[2].bias, -1e4)
    nn.init.zeros_(layer.weights[2].weight)  # weights that are the same at every place are a convolution
    kernel = layer.weights[2].bias.view(2, 1, 3, 3).repeat_interleave(8, 0)
    expected = F.silu(F.conv2d(layer.value(x), kernel, padding=1, groups=16))
    assert torch.allclose(layer(x), expected, atol=1e-5)


def test_local_sums_are_those_of_patches():
    x, weights = torch.randn(2, 6, 4, 7), torch.randn(2, 3, 25, 4, 7)
    patches = F.unfold(x, 5, padding=2).view(2, 3, 2, 25, 4, 7)
    assert torch.allclose(local_sums(x, weights, 5), (patches * weights.unsqueeze(2)).sum(3).flatten(1, 2), atol=1e-5)


@pytest.mark.parametrize("name, options", [("cvt_attention", {"stride": 3}), ("cmt", {"grid": (7, 8), "reduction": 3})])
def test_keys_are_fewer(name, options, monkeypatch):
    module = importlib.import_module(f"layerzoo.layers.hybrid.{name}")
    seen, attend = [], module.attend

    def spy(q, k, v, *rest):
        seen.append((q.shape[2], k.shape[2], v.shape[2]))
        return attend(q, k, v, *rest)

    monkeypatch.setattr(module, "attend", spy)
    lz.create_layer(name, 8, **options)(torch.randn(1, 8, 7, 8))
    assert seen == [(56, 9, 9)]
