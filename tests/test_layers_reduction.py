"""Fewer places by attention and by learned tokens: Funnel, LeViT, TokenLearner and TokenFuser, Charformer, alone and inside models."""

import re
from pathlib import Path

import pytest
import torch
from timm.models.levit import LevitDownsample
from torch import nn
from torch.nn.utils.fusion import fuse_linear_bn_weights

import layerzoo as lz
from layerzoo.cli import main
from layerzoo.models.pyramid import Pyramid
from layerzoo.registry import DOWNSAMPLES
from layerzoo.report.pages import page, room_table

NAMES = ["charformer", "funnel", "shrinking_attention", "token_learner"]


def downsample(name, dim=8, dim_out=8, **options):
    return DOWNSAMPLES.create(name, dim, dim_out, **options).double()


def a_map(*grid, dim=8):
    return torch.randn(2, dim, *grid, dtype=torch.double)


@pytest.mark.parametrize("name", NAMES)
def test_models_learn_through_them(name):
    model = lz.create_model("coatnet_micro", num_classes=10, img_size=32, downsample=name)
    for size in ((32, 32), (20, 44)):
        model(torch.randn(2, 3, *size)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    maps = model.eval().forward_intermediates(torch.randn(1, 3, 32, 32), intermediates_only=True)
    assert [stage.grid for stage in model.stages] == [tuple(m.shape[2:]) for m in maps]


def test_layers_with_tables_are_built_for_the_learned_tokens():
    tokens = {"name": "token_learner", "num_tokens": 6}
    model = Pyramid(dims=[8, 8, 16], depths=[1, 1, 1], layer="mlp_mixer", downsample=tokens, stem={"name": "conv"}, input_size=(3, 9, 9), num_classes=4)
    assert [stage.blocks[0].layer.grid for stage in model.stages] == [(9, 9), (2, 3), (2, 3)]
    assert model(torch.randn(2, 3, 9, 9)).shape == (2, 4)


def test_blocks_that_stride_halve_whatever_the_downsample():
    model = Pyramid(dims=[8, 8, 8], depths=[1, 1, 1], layer=["basic", "basic", "mhsa"], downsample="token_learner", stem={"name": "conv"}, input_size=(3, 9, 9))
    assert [stage.grid for stage in model.stages] == [(9, 9), (5, 5), (2, 4)]


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_funnel_of_repeated_pixels_is_attention_among_the_pixels(pool):
    layer, attention, x = downsample("funnel", num_heads=2, pool=pool), lz.create_layer("mhsa", dim=8, num_heads=2).double(), a_map(3, 4)
    with torch.no_grad():
        attention.qkv.weight.copy_(torch.cat([layer.query.weight, layer.key_value.weight]))
        attention.qkv.bias.copy_(torch.cat([layer.query.bias, layer.key_value.bias]))
        attention.proj.load_state_dict(layer.proj.state_dict())
    tokens = x.flatten(2).mT
    repeated = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.allclose(layer(repeated).flatten(2).mT, tokens + attention(layer.norm(tokens)), atol=1e-12)


def test_every_cell_of_funnel_sees_every_pixel():
    layer, x = downsample("funnel", dim_out=12), a_map(5, 6)
    y = layer(x)
    x[:, 0, 4, 5] += 1
    assert ((layer(x) - y).abs().amax(1) > 1e-9).all()


@pytest.mark.parametrize("grid", [(7, 6), (4, 3), (1, 1)])
def test_shrinking_attention_is_that_of_levit_at_even_places(grid):
    layer, x = downsample("shrinking_attention", grid=(5, 6), num_heads=2, key_dim=3, value_ratio=2, norm="none"), a_map(*grid)
    attention = lz.create_layer("levit", dim=8, grid=(5, 6), num_heads=2, key_dim=3).double()
    nn.init.normal_(attention.table)
    with torch.no_grad():
        for part in ("weight", "bias"):
            q, k_and_v = getattr(attention.qkv, part).unflatten(0, (2, 12)).split((3, 9), 1)
            getattr(layer.query, part).copy_(q.flatten(0, 1))
            getattr(layer.key_value, part).copy_(k_and_v.flatten(0, 1))
        layer.table.copy_(attention.table)
        layer.proj.load_state_dict(attention.proj.state_dict())
        z = attention(x)[..., ::2, ::2]
        assert torch.allclose(layer(x), z + layer.ffn(z), rtol=0, atol=1e-12)


@pytest.mark.parametrize("grid", [(7, 7), (4, 4), (5, 3), (1, 2)])
def test_shrinking_attention_takes_the_weights_of_timm(grid):
    theirs = LevitDownsample(8, 12, key_dim=4, num_heads=2, attn_ratio=4.0, act_layer=nn.Hardswish, resolution=grid).double().eval()
    layer, attention, mlp = downsample("shrinking_attention", dim_out=12, grid=grid, key_dim=4).eval(), theirs.attn_downsample, theirs.mlp
    for name, value in theirs.state_dict().items():
        value.uniform_(0.5, 1.5) if name.endswith(("bn.weight", "var")) else value.normal_(std=0.5) if value.is_floating_point() else None
    linears = {layer.query: attention.q.ln, layer.key_value: attention.kv, layer.ffn.fc1: mlp.ln1}
    with torch.no_grad():
        for linear, pair in linears.items():
            linear.weight, linear.bias = fuse_linear_bn_weights(
                pair.linear.weight, None, pair.bn.running_mean, pair.bn.running_var, pair.bn.eps, pair.bn.weight, pair.bn.bias)
        for linear, norm, pair in ((layer.proj, layer.norm, attention.proj.ln), (layer.ffn.fc2, layer.ffn_norm, mlp.ln2)):
            linear.weight.copy_(pair.linear.weight)
            linear.bias.zero_()
            norm.load_state_dict(pair.bn.state_dict())
        layer.table.copy_(attention.attention_biases.unflatten(1, grid))
        x = a_map(*grid)
        assert torch.allclose(layer(x).flatten(2).mT, theirs(x.flatten(2).mT), rtol=0, atol=1e-10)


@pytest.mark.parametrize("count, grid", [(1, (1, 1)), (7, (1, 7)), (8, (2, 4)), (12, (3, 4)), (16, (4, 4)), (18, (3, 6))])
def test_learned_tokens_make_the_most_square_map(count, grid):
    layer = downsample("token_learner", num_tokens=count)
    assert layer.out_grid((3, 50)) == grid and layer(a_map(3, 5)).shape == (2, 8, *grid)


@pytest.mark.parametrize("maps", ["softmax", "sigmoid"])
def test_softmax_maps_ignore_the_order_of_positions_and_convolved_ones_do_not(maps):
    layer, x = downsample("token_learner", maps=maps), a_map(4, 5)
    shuffled = x.flatten(2)[..., torch.randperm(20)].view_as(x)
    assert torch.allclose(layer(x), layer(shuffled), atol=1e-12) is (maps == "softmax")


@pytest.mark.parametrize("maps, share", [("softmax", 1), ("sigmoid", 0.5)])
def test_tokens_of_flat_maps_are_the_mean(maps, share):
    layer, x = downsample("token_learner", maps=maps, num_tokens=4), a_map(3, 5)
    nn.init.zeros_((layer.learner.fc2 if maps == "softmax" else layer.convs[-1]).weight)
    assert torch.allclose(layer(x), share * x.mean((2, 3))[..., None, None].expand(-1, -1, 2, 2), atol=1e-12)


def test_a_token_can_be_one_position():
    layer, x = downsample("token_learner", num_tokens=3), a_map(3, 5)
    with torch.no_grad():
        layer.learner.fc2.weight.mul_(1e9)
    distances = torch.cdist(layer(x).flatten(2).mT, x.flatten(2).mT)
    assert distances.amin(2).max() < 1e-9


@pytest.mark.parametrize("count", [1, 3])
def test_the_fused_map_has_no_more_rank_than_tokens(count):
    layer, x = lz.create_layer("token_fuser", dim=16, num_tokens=count).double(), a_map(5, 6, dim=16)
    assert torch.linalg.matrix_rank(layer(x).flatten(2), rtol=1e-9).tolist() == [count, count]


def test_tokens_are_fused_by_gates_between_zero_and_one():
    layer, x = lz.create_layer("token_fuser", dim=16, num_tokens=1).double(), a_map(5, 6, dim=16)
    with torch.no_grad():
        layer.gate.weight.zero_()
    outputs = []
    for bias in (-100, 0, 100):
        nn.init.constant_(layer.gate.bias, bias)
        outputs.append(layer(x))
    closed, half, wide = outputs
    assert closed.abs().max() < 1e-12 and torch.allclose(2 * half, wide, atol=1e-12)
    assert torch.allclose(wide, wide[..., :1, :1].expand_as(wide), atol=1e-12) and wide.abs().max() > 1e-3


@pytest.mark.parametrize("grid", [(1, 1), (5, 7), (8, 3)])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_means_of_blocks_count_no_padding(size, grid):
    layer = downsample("charformer", max_block_size=size)
    nn.init.dirac_(layer.conv.weight, groups=8)
    nn.init.zeros_(layer.conv.bias)
    x = torch.ones(2, 8, *grid).double()
    assert torch.allclose(layer(x), torch.ones(2, 8, *layer.out_grid(grid)).double(), atol=1e-12)


def test_blocks_of_one_pixel_leave_a_mean_over_cells():
    layer, x = downsample("charformer", max_block_size=1, kernel_size=1), a_map(5, 6)
    nn.init.ones_(layer.conv.weight)
    nn.init.zeros_(layer.conv.bias)
    assert torch.allclose(layer(x)[..., 0, 0], x[..., :2, :2].mean((2, 3))) and torch.allclose(layer(x)[..., 2, 0], x[..., 4, :2].mean(2))


def test_the_best_block_is_chosen():
    layer, x = downsample("charformer", max_block_size=4, kernel_size=1), torch.zeros(1, 8, 4, 4).double()
    nn.init.ones_(layer.conv.weight)
    nn.init.zeros_(layer.conv.bias)
    x[..., 0, 0], x[..., 1:, 1:] = 4, -1
    # of the corner cell: pixels 4, 0, 0, -1, which all lie in blocks of means 0.75 (2 x 2), 0 (3 x 3) and -5 / 16 (4 x 4)
    for scale, expected in ((1e9, (4 + 3 * 0.75) / 4), (-1e9, (-1 - 3 * 5 / 16) / 4)):
        nn.init.constant_(layer.score.weight, scale)
        assert layer(x)[0, 0, 0, 0].item() == pytest.approx(expected)


def test_calibration_makes_no_square_matrix():
    small, large = (lz.cost(downsample("charformer", calibrate=True).float(), (1, 8, side, side)).activation_bytes for side in (64, 128))
    assert large < 4.2 * small


@pytest.mark.parametrize("name", NAMES)
def test_pages_and_the_command_line_show_them(name, capsys):
    card = DOWNSAMPLES.card(name)
    text = page(DOWNSAMPLES, name, Path(__file__).parent / "oracles")
    assert f"[{card.title}](https://arxiv.org/abs/{card.paper})" in text and f"| class in the survey 2009.06732 | {card.survey or 'not in it'} |" in text
    assert f"[{name}](downsample/{name}.md)" in room_table(DOWNSAMPLES, "downsample")
    assert main(["show", name]) == 0
    assert card.title in capsys.readouterr().out


@pytest.mark.parametrize("name, options, message", [
    ("funnel", {"pool": "min"}, "pool: got 'min', expected one of mean, max. Choose one of these."),
    ("funnel", {"num_heads": 3}, "num_heads: got 3, expected a divisor of dim=8. Choose one of 1, 2, 4, 8."),
    ("shrinking_attention", {"grid": (4, 4), "key_dim": 0}, "key_dim: got 0, expected a whole number >= 1. Choose a small one such as 2."),
    ("shrinking_attention", {"grid": (4, 4), "value_ratio": 0.5}, "value_ratio: got 0.5, expected a whole number >= 1. Choose a small one such as 2."),
    ("shrinking_attention", {"grid": (4, 4), "num_heads": 0}, "num_heads: got 0, expected a whole number >= 1. Choose a small one such as 2."),
    ("shrinking_attention", {"grid": (4, 0)}, "grid: got (4, 0), expected (H, W), both >= 1. Pass the height and width of the map the layer is built for."),
    ("shrinking_attention", {"grid": (4, 4), "mlp_ratio": 0}, "mlp_ratio: got 0, expected a number that leaves a hidden channel. Choose one such as 4."),
    ("token_learner", {"maps": "relu"}, "maps: got 'relu', expected one of softmax, sigmoid. Choose one of these."),
    ("token_learner", {"num_tokens": 0}, "num_tokens: got 0, expected a whole number >= 1. TokenLearner's is 8."),
    ("token_learner", {"num_tokens": 0, "maps": "sigmoid"}, "num_tokens: got 0, expected a whole number >= 1. TokenLearner's is 8."),
    ("token_learner", {"hidden_dim": 0}, "hidden_dim: got 0, expected a whole number >= 1. TokenLearner's is 64."),
    ("charformer", {"max_block_size": 0}, "max_block_size: got 0, expected a whole number of positions >= 1. The paper's is 4."),
    ("charformer", {"kernel_size": 4}, "kernel_size: got 4, expected an odd whole number >= 1. Choose one such as 3, 5 or 7."),
])
def test_refusals(name, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        downsample(name, **options)


@pytest.mark.parametrize("options, message", [
    ({"num_tokens": -1}, "num_tokens: got -1, expected a whole number >= 1. TokenLearner's is 8."),
    ({"hidden_dim": 0}, "hidden_dim: got 0, expected a whole number >= 1. TokenLearner's is 64."),
    ({"num_heads": 3}, "num_heads: got 3, expected a divisor of dim=16. Choose one of 1, 2, 4, 8, 16."),
])
def test_refusals_of_the_layer(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        lz.create_layer("token_fuser", dim=16, **options)
