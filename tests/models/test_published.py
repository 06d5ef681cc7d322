"""The parts that published models need: a class token, positions in stages, patches that overlap, heads that normalise."""

import json
import re

import pytest
import torch
from torch import nn

import layerzoo as lz
from layerzoo.ffn.mlp import MLP
from layerzoo.models.block import Block, DropPath, create_norm
from layerzoo.models.classic import InvertedResidual, MBConv
from layerzoo.models.head import Head
from layerzoo.models.isotropic import Isotropic
from layerzoo.models.pyramid import Pyramid
from layerzoo.models.stem import create_stem
from layerzoo.ops.same import SamePad
from layerzoo.report.pages import models_page


def with_class_token(layer="mhsa", **changes):
    torch.manual_seed(0)
    sizes = {"dim": 16, "depth": 2, "stem": {"name": "patchify", "patch_size": 4}, "input_size": (3, 16, 24), "num_classes": 5}
    return Isotropic(layer=layer, num_prefix=1, head={"pool": "first"}, block={"num_heads": 2}, **(sizes | changes)).eval()


def test_the_class_token_answers_alone():
    model, x = with_class_token(), torch.randn(2, 3, 16, 24)
    features = model.forward_features(x)
    assert features.shape == (2, 16, 1, 1 + 4 * 6)
    assert torch.equal(model(x), model.head.fc(features[..., 0, 0]))
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 5), "attention needs no map"


def test_maps_have_no_class_token():
    model, x = with_class_token(), torch.randn(2, 3, 16, 24)
    last, maps = model.forward_intermediates(x, norm=True)
    assert [m.shape for m in maps] == [(2, 16, 4, 6)] * 2
    assert torch.equal(maps[1].flatten(2), last[:, :, 0, 1:]) and torch.equal(last, model.forward_features(x))


@pytest.mark.parametrize("layer", ["depthwise_conv", "mlp_mixer", "performer"])
def test_any_layer_beside_a_class_token(layer):
    model, x = with_class_token(layer), torch.randn(2, 3, 16, 24)
    model(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert model.prefix.grad.abs().sum() > 0 and model.stem.embed.weight.grad.abs().sum() > 0


def test_layers_are_swapped_around_a_class_token():
    model, x = with_class_token(), torch.randn(1, 3, 16, 24)
    before = model.stages[1].layer.layer.qkv.weight.clone()
    lz.swap(model, "linear_attention", where="stages.1.layer")
    again = lz.build_model(json.loads(json.dumps(model.config))).eval()
    again.load_state_dict(model.state_dict())
    assert type(again.stages[1].layer.layer).__name__ == "LinearAttention" and torch.equal(again.stages[1].layer.layer.qkv.weight, before)
    assert torch.equal(again(x), model(x))


def test_a_position_in_every_stage():
    model = Pyramid(dims=[8, 16], depths=[2, 1], layer="identity", position={"name": "conditional", "after": "block"}, input_size=(3, 16, 16)).eval()
    stage, x = model.stages[0], torch.randn(1, 8, 4, 4)
    first = stage.blocks[0](x)
    assert torch.equal(stage(x), stage.blocks[1](first + stage.position.conv(first)))
    assert type(model.position).__name__ == "NoPosition" and model.stages[1].position.conv.in_channels == 16


def test_a_layer_with_options_of_its_block():
    layers = [["pooling", {"name": "mhsa", "block": {"norm": "layer", "ffn": "none"}}]]
    first, second = Pyramid(dims=[8], depths=[2], layer=layers, block={"norm": "none"}, input_size=(3, 16, 16)).stages[0].blocks
    assert isinstance(first.norm, nn.Identity) and first.ffn is not None and isinstance(second.norm, nn.LayerNorm) and second.ffn is None


def test_a_stem_of_other_width():
    model = Pyramid(dims=[24, 32], depths=[1, 1], layer=["mhsa", "bottleneck"], stem={"name": "conv", "width": 8}, input_size=(3, 8, 8), num_classes=2)
    assert model.stem(torch.randn(1, 3, 8, 8)).shape == (1, 8, 8, 8)
    assert [m.shape for m in model.forward_intermediates(torch.randn(1, 3, 8, 8))[1]] == [(1, 24, 8, 8), (1, 32, 4, 4)]


@pytest.mark.parametrize("patch, kernel, padding", [(4, 7, 2), (4, 7, 3), (2, 3, 1), (4, 4, 0)])
def test_patches_that_overlap(patch, kernel, padding):
    stem = create_stem({"name": "patchify", "patch_size": patch, "kernel_size": kernel, "padding": padding, "norm": {"name": "layer", "eps": 1e-3}}, 3, 8)
    x = torch.randn(1, 3, 4 * patch, 4 * patch)
    assert torch.equal(stem.embed(x), nn.functional.conv2d(x, stem.embed.weight, stem.embed.bias, patch, padding))
    assert stem(x).shape == (1, 8, 4, 4) and stem(x[..., 1:, :]).shape == (1, 8, 4, 4) and stem.norm.eps == 1e-3


@pytest.mark.parametrize("padding", [1, 4])
def test_patches_give_one_place_each(padding):
    message = f"padding of the patches: got {padding}, expected 2 to 3, with which each patch gives one place. Choose one of these for this kernel_size."
    with pytest.raises(ValueError, match=re.escape(message)):
        create_stem({"name": "patchify", "patch_size": 4, "kernel_size": 7, "padding": padding}, 3, 8)


def test_heads():
    x = torch.randn(2, 8, 3, 3)
    head = Head(8, 5, pooled_norm="layer", hidden_dim=12)
    pooled = nn.functional.layer_norm(x.mean((2, 3)), (8,))
    assert torch.allclose(head(x, pre_logits=True), pooled, atol=1e-6)
    linear, gelu, norm = head.hidden
    assert torch.allclose(head(x), head.fc(norm(gelu(linear(pooled)))), atol=1e-6)
    head.reset(3)
    assert head(x).shape == (2, 3)


def test_the_norm_of_a_branch():
    block, x = Block(8, layer="depthwise_conv", post_norm="branch", layer_scale=0.5), torch.randn(2, 8, 3, 3)
    y = x + 0.5 * block.norm(block.layer(x))
    assert torch.allclose(block(x), y + 0.5 * block.ffn_norm(block.ffn(y)), atol=1e-6)


def test_hardswish_between_the_convolutions_of_a_stem():
    stem, x = create_stem({"name": "overlap", "act": "hardswish", "act_last": False, "proj": False}, 3, 16), torch.randn(2, 3, 9, 9)
    (conv, norm, _), (last, last_norm, _) = stem.convs
    hidden = norm(conv(x))
    assert torch.allclose(stem(x), last_norm(last(hidden * (hidden + 3).clamp(0, 6) / 6)), atol=1e-6)


def test_levit_128s_is_built_for_its_maps():
    model = lz.create_model("levit_128s", num_classes=5, img_size=112)
    assert [stage.downsample.grid for stage in model.stages[1:]] == [stage.grid for stage in model.stages[:2]] == [(7, 7), (4, 4)]
    assert [stage.blocks[0].layer.grid for stage in model.stages] == [(7, 7), (4, 4), (2, 2)]
    full = lz.create_model("levit_128s", num_classes=1000, img_size=224)
    assert sum(p.numel() for p in full.parameters()) == 7_385_274


@pytest.mark.parametrize("post_norm", [False, True, "branch"])
def test_a_block_without_residual(post_norm):
    block = Block(8, layer="depthwise_conv", post_norm=post_norm, residual=False, drop_path=0.9, layer_scale=0.5)
    x = torch.randn(2, 8, 3, 3)

    def branch(x, unit, norm):
        return 0.5 * unit(norm(x)) if not post_norm else norm(0.5 * unit(x)) if post_norm is True else 0.5 * norm(unit(x))

    assert torch.allclose(block(x), branch(branch(x, block.layer, block.norm), block.ffn, block.ffn_norm), atol=1e-6)
    assert not any(isinstance(m, DropPath) for m in block.modules()), "a dropped branch would be all there is"
    bare = Block(8, layer="depthwise_conv", norm="none", ffn="none", residual=False)
    assert torch.equal(bare(x), bare.layer(x))


def test_a_layer_without_residual_is_swapped():
    unit = {"name": "mobilevit", "num_heads": 2, "block": {"norm": "none", "ffn": "none", "residual": False}}
    model = Pyramid(dims=[8], depths=[1], layer=unit, input_size=(3, 16, 16), num_classes=2).eval()
    lz.swap(model, "pooling", where="*.layer")
    block, x = lz.build_model(json.loads(json.dumps(model.config))).stages[0].blocks[0], torch.randn(1, 8, 5, 5)
    assert type(block.layer).__name__ == "Pooling" and torch.equal(block(x), block.layer(x)) and torch.equal(model.stages[0](x), block(x))


@pytest.mark.parametrize("dim, stride, kept", [(6, 1, True), (6, 2, False), (5, 1, False)])
def test_inverted_residuals(dim, stride, kept):
    block = InvertedResidual(6, dim, stride=stride, drop_path=0.5, expansion=3).double().eval()
    x = y = torch.randn(2, 6, 7, 4, dtype=torch.float64)
    for i, groups in ((0, 1), (2, 18), (4, 1)):
        conv, norm = block.branch[i]
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        at = {"stride": stride, "padding": 1, "groups": groups} if i == 2 else {}
        y = nn.functional.batch_norm(nn.functional.conv2d(y, conv.weight, **at), norm.running_mean, norm.running_var)
        y = y if i == 4 else y * y.sigmoid()
    assert len(block.branch) == 5 and torch.allclose(block(x), x + y if kept else y, rtol=1e-12)
    assert any(isinstance(m, DropPath) for m in block.modules()) is kept


def test_inverted_residuals_drop_their_branch():
    block, x = InvertedResidual(6, 6, drop_path=0.5).train(), torch.randn(64, 6, 3, 3)
    assert 8 < (block(x) == x).flatten(1).all(1).sum() < 56


def test_the_activation_of_a_stem():
    stem, x = create_stem({"name": "conv", "act": "silu", "stride": 2}, 3, 8).eval(), torch.randn(2, 3, 6, 6)
    y = stem.norm(nn.functional.conv2d(x, stem.conv.weight, stride=2, padding=1))
    assert torch.allclose(stem(x), y * y.sigmoid(), atol=1e-6)
    relu = create_stem({"name": "conv", "stride": 2}, 3, 8).eval()
    relu.load_state_dict(stem.state_dict())
    assert torch.allclose(relu(x), y.clamp(min=0), atol=1e-6)


def test_a_wider_last_map():
    head, x = {"norm": "batch", "num_features": 8}, torch.randn(2, 3, 16, 16)
    model = Pyramid(dims=[8, 6, 6], depths=[1, 1, 1], layer="identity", head=head, input_size=(3, 16, 16), num_classes=2)
    last, maps = model.eval().forward_intermediates(x)
    conv, norm, _ = model.norm
    y = norm(nn.functional.conv2d(maps[2], conv.weight))
    assert torch.allclose(last, y * y.sigmoid(), atol=1e-6) and torch.equal(last, model.forward_features(x))
    assert torch.equal(model(x), model.head.fc(last.mean((2, 3)))) and model.num_features == model.head.fc.in_features == 8
    normed = model.forward_intermediates(x, norm=True, intermediates_only=True)
    assert torch.equal(normed[0], maps[0]) and torch.equal(normed[1], model.norm(maps[1])) and torch.equal(normed[2], last)


def test_the_hidden_layer_of_a_head():
    head, x = Head(6, 3, hidden_dim=4, hidden_act="tanh", pooled_norm="layer"), torch.randn(2, 6, 3, 2)
    y = nn.functional.layer_norm(x.mean((2, 3)), (6,))
    assert torch.allclose(head(x), head.fc(torch.tanh(head.hidden[0](y))), atol=1e-6) and head.hidden[0].out_features == 4


def test_shortcuts_take_means():
    block, x = MBConv(4, 6, stride=2, pool="mean").eval(), torch.randn(2, 4, 6, 8)
    means = x.unflatten(3, (4, 2)).unflatten(2, (3, 2)).mean((3, 5))
    assert torch.allclose(block(x), block.shortcut[1](means) + block.branch(x), atol=1e-6)


@pytest.mark.parametrize("side, expected", [(6, "x."), (7, ".x."), (1, ".x.")])
def test_strided_convolutions_pad_as_tensorflow_does(side, expected):
    """The places that a kernel of three sees first and last: an odd zero is at the end, two are shared."""
    before, after = expected.index("x"), expected[::-1].index("x")
    padded = SamePad(3, 2)(torch.ones(1, 1, side, 6))
    assert torch.equal(padded, nn.functional.pad(torch.ones(1, 1, side, 6), (0, 1, before, after)))
    assert nn.functional.conv2d(padded, torch.ones(1, 1, 3, 3), stride=2).shape[2] == -(-side // 2)


def test_mobile_convolutions_of_maxvit():
    block, x = MBConv(4, 4, stride=2, pool="mean", act="gelu_tanh", eps=1e-3, same=True).eval().double(), torch.randn(2, 4, 5, 6, dtype=torch.float64)
    norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 3 and all(norm.eps == 1e-3 for norm in norms)
    y, (conv1, norm1), (_, conv2, norm2) = norms[0](x), block.branch[1], block.branch[3]
    y = nn.functional.gelu(norm1(conv1(y)), approximate="tanh")
    y = nn.functional.pad(y, (0, 1, 1, 1))  # of 5 x 6 places
    y = nn.functional.gelu(norm2(nn.functional.conv2d(y, conv2.weight, stride=2, groups=16)), approximate="tanh")
    means = nn.functional.avg_pool2d(nn.functional.pad(x, (0, 0, 0, 1), mode="replicate"), 2)  # where one row sticks out
    assert torch.allclose(block(x), means + block.branch[6](block.branch[5](y)), rtol=1e-10)


def test_downsamples_of_a_pyramid():
    model = Pyramid(dims=[8, 8, 8], depths=[0, 1, 1], layer="identity", downsample=["funnel", "patch_merge", "blur_pool"], input_size=(3, 16, 16), num_classes=2)
    assert [type(s.downsample).__name__ for s in model.stages] == ["Identity", "PatchMerge", "BlurPool"] and len(model.stages[0].blocks) == 0


def test_a_class_token_that_comes_in_last():
    head = Head(8, 3, pool="class", class_pool={"depth": 2, "num_heads": 2, "mlp_ratio": 2, "layer_scale": 0.5}).double()
    x = torch.randn(2, 8, 3, 2, dtype=torch.float64)
    token = head.class_pool.token.expand(2, 8)
    for block in head.class_pool.blocks:
        whole = nn.MultiheadAttention(8, 2, batch_first=True).double()
        maps = (block.q, block.k, block.v)
        whole.in_proj_weight.data = torch.cat([linear.weight for linear in maps])
        whole.in_proj_bias.data = torch.cat([block.q.bias, torch.randn(8), block.v.bias])  # that of keys says nothing
        whole.out_proj = block.proj
        seen = block.norm(torch.cat([token[:, None], x.flatten(2).mT], 1))
        token = token + 0.5 * whole(seen[:, :1], seen, seen)[0][:, 0]
        token = token + 0.5 * block.ffn(block.ffn_norm(token)[:, None])[:, 0]
    assert len(head.class_pool.blocks) == 2 and torch.allclose(head(x), head.fc(token), rtol=1e-12)
    head(x).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in head.class_pool.parameters())


def test_class_blocks_of_xcit():
    head = Head(8, 3, pool="class", class_pool={"kind": "xcit", "num_heads": 2, "mlp_ratio": 2, "layer_scale": 0.5}).double()
    x = torch.randn(2, 8, 3, 2, dtype=torch.float64)
    token, places = head.class_pool.token.expand(2, 8), x.flatten(2).mT
    for block in head.class_pool.blocks:
        seen = block.norm(torch.cat([token[:, None], places], 1))
        q, k, v = (linear(t).unflatten(2, (2, 4)).transpose(1, 2) for linear, t in ((block.q, seen[:, :1]), (block.k, seen), (block.v, seen)))
        heads = ((q @ k.mT / 2).softmax(-1) @ v).transpose(1, 2).flatten(2)
        token = block.ffn_norm(token + 0.5 * block.proj(heads)[:, 0])
        token, places = token + 0.5 * block.ffn(token[:, None])[:, 0], 2 * places + seen[:, 1:]
    assert torch.allclose(head(x), head.fc(token), rtol=1e-12)


@pytest.mark.parametrize("name, parameters", [  # of timm's models, less the one of two of a batch norm that a bias does not need
    ("cait_xxs24", 11_956_264 - 24 * 4 - 2 * 192),  # and less the biases that a softmax takes away
    ("xcit_nano_12_p16", 3_053_224 - 2 * 128), ("coatnet_0", 25_036_820 + 64),  # and a bias at the end of the stem
    ("maxvit_tiny", 30_916_528 - 64), ("mvitv2_tiny", 24_173_320),
    ("edgenext_xx_small", 1_327_216 - 304),  # but the scales of its attention
    ("mobilevit_s", 5_578_632 - 3 * (96 + 128 + 160)), ("mobilevitv2_100", 4_901_841 - 2 * (256 + 384 + 512)),
])
def test_parameters(name, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in lz.create_model(name).parameters()) == parameters


def test_the_page_of_models():
    page = models_page()
    rows = {row.split("`")[1]: row for row in page.splitlines() if row.startswith("| `")}
    assert sorted(rows) == lz.list_models()
    assert rows["coatnet_0"].endswith("has a hidden layer. | 25,036,884 | <code>coatnet&#95;0&#95;224</code> |") and "[arXiv 2106.04803](https://arxiv.org/abs/2106.04803)" in rows["coatnet_0"]
    assert rows["deit_tiny"].endswith("| <code>(deit&#124;vit)&#95;tiny&#95;patch16&#95;\\d+</code> |") and rows["van_b0"].endswith(" | 4,105,320 |  |")
    names = {}
    exec(compile(page.partition("```python\n")[2].partition("```")[0], "models", "exec"), names)
    assert names["ours"].num_classes == 1000


def test_norms_after_linear_maps():
    ffn, x = MLP(6, norm="batch"), torch.randn(3, 6, 4, 5)
    convs = [nn.functional.conv2d(x, ffn.fc1.weight[..., None, None], ffn.fc1.bias)]
    hidden = nn.functional.gelu(nn.functional.batch_norm(convs[0], None, None, training=True))
    expected = nn.functional.batch_norm(nn.functional.conv2d(hidden, ffn.fc2.weight[..., None, None], ffn.fc2.bias), None, None, training=True)
    assert torch.allclose(ffn(x), expected, atol=1e-5)


@pytest.mark.parametrize("call, message", [
    (lambda: Block(8, layer="identity", post_norm="sum"), "post_norm: got 'sum', expected one of False, True, branch. Choose one of these."),
    (lambda: MLP(8, act="relu"), "act: got 'relu', expected one of gelu, gelu_tanh, hardswish. Choose one of these."),
    (lambda: MLP(8, norm="layer"), "norm: got 'layer', expected one of none, batch. Choose one of these."),
    (lambda: create_norm({"name": "layer", "epsilon": 1}, 8), "options of a norm: got name, epsilon, expected name and eps alone. Leave the others out."),
    (lambda: with_class_token(position={"name": "conditional", "after": "block"}), "after, of a position: got 'block', expected one of stem. Choose one of these."),
    (lambda: create_stem({"name": "overlap", "act": "silu"}, 3, 8), "act: got 'silu', expected one of gelu, gelu_tanh, relu, hardswish. Choose one of these."),
    (lambda: lz.create_layer("mhsa", dim=8, talking_heads="loud"), "talking_heads: got 'loud', expected one of False, True, biased. Choose one of these."),
    (lambda: Head(8, 2, pool="class", class_pool={"num_heads": 3}), "num_heads: got 3, expected a divisor of dim=8"),
    (lambda: Head(8, 2, hidden_dim=4, hidden_act="relu"), "hidden_act: got 'relu', expected one of gelu, tanh. Choose one of these."),
    (lambda: MBConv(8, 8, pool="min"), "pool: got 'min', expected one of max, mean. Choose one of these."),
    (lambda: MBConv(8, 8, act="silu"), "act: got 'silu', expected one of gelu, gelu_tanh. Choose one of these."),
    (lambda: Pyramid(dims=[8, 8], depths=[1, 1], layer="conv", downsample=["funnel"]), "downsample: got 1 entries, expected one per stage, 2 as in dims."),
    (lambda: Head(8, 2, pool="class", class_pool={"kind": "vit"}), "kind: got 'vit', expected one of cait, xcit. Choose one of these."),
    (lambda: create_stem({"name": "conv", "act": "gelu"}, 3, 8), "act: got 'gelu', expected one of relu, silu. Choose one of these."),
])
def test_refusals(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
