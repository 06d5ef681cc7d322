"""Hybrids of convolution and attention: against timm with its weights, what they refuse, and how far each part of them sees."""

import re
from functools import partial

import pytest
import torch
from timm.layers import ConvNormAct
from timm.models import edgenext, efficientformer, efficientformer_v2, maxxvit, mobilevit
from timm.models.byobnet import LayerFn
from torch import nn

import layerzoo as lz


def drawn(module):
    """In float64 and eval, with random parameters and statistics of batch norms."""
    module.double()
    module.eval()  # some of them return nothing
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(0.3 * torch.randn_like(p) + (p.ndim == 1))
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 2)
    return module


@torch.no_grad()
def give(target, weight, bias=None):
    """Put weights, of another shape perhaps, into a linear map, a convolution or a norm."""
    target.weight.copy_(weight.reshape(target.weight.shape))
    if bias is not None:
        target.bias.copy_(bias)


def folded(conv, norm):
    """Weight and bias of a convolution with the batch norm after it."""
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    bias = norm.bias - norm.running_mean * scale
    return conv.weight * scale[:, None, None, None], bias if conv.bias is None else bias + conv.bias * scale


def same(source, targets):
    for name, target in targets.items():
        part = source.get_submodule(name)
        give(target, part.weight, part.bias)


SILU = LayerFn(conv_norm_act=partial(ConvNormAct, act_layer=nn.SiLU), act=nn.SiLU)


def test_mobilevit_equals_timm_with_its_weights():
    block = drawn(mobilevit.MobileVitBlock(6, transformer_dim=8, transformer_depth=2, patch_size=2, num_heads=2, layers=SILU))
    layer = lz.create_layer("mobilevit", dim=6, hidden_dim=8, num_heads=2).double()
    for mine, theirs in ((layer.local, block.conv_kxk), (layer.narrow, block.conv_proj), (layer.fuse, block.conv_fusion)):
        give(mine, *folded(theirs.conv, theirs.bn))
    give(layer.widen, block.conv_1x1.weight)
    same(block, {"norm": layer.norm})
    for mine, theirs in zip(layer.transformers, block.transformer, strict=True):
        same(theirs, {"norm1": mine.norm1, "attn.qkv": mine.attention.qkv, "attn.proj": mine.attention.proj, "norm2": mine.norm2,
                      "mlp.fc1": mine.fc1, "mlp.fc2": mine.fc2})
    x = torch.randn(2, 6, 4, 10, dtype=torch.double)
    assert torch.allclose(layer(x), block(x), rtol=0, atol=1e-10)


def test_mobilevit_v2_equals_timm_with_its_weights():
    block = drawn(mobilevit.MobileVitV2Block(6, transformer_dim=4, transformer_depth=2, patch_size=2, layers=SILU))
    layer = lz.create_layer("mobilevit_v2", dim=6, hidden_dim=4).double()
    for mine, theirs in ((layer.local, block.conv_kxk), (layer.outward, block.conv_proj)):
        give(mine, *folded(theirs.conv, theirs.bn))
    give(layer.inward, block.conv_1x1.weight)
    same(block, {"norm": layer.norm})
    for mine, theirs in zip(layer.transformers, block.transformer, strict=True):
        same(theirs, {"norm1": mine.norm1, "attn.qkv_proj": mine.qkv, "attn.out_proj": mine.proj, "norm2": mine.norm2,
                      "mlp.fc1": mine.fc1, "mlp.fc2": mine.fc2})
    x = torch.randn(2, 6, 4, 10, dtype=torch.double)
    assert torch.allclose(layer(x), block(x), rtol=0, atol=1e-10)


def test_maxvit_equals_timm_with_its_weights():
    config = maxxvit.MaxxVitTransformerCfg(dim_head=4, head_first=False, window_size=4)
    mobile = drawn(maxxvit.MbConvBlock(8, 8, cfg=maxxvit.MaxxVitConvCfg()))
    mobile.pre_norm = nn.Identity()  # the block's
    block, grid = (drawn(maxxvit.PartitionAttentionCl(8, kind, config)) for kind in ("block", "grid"))
    layer = lz.create_layer("maxvit", dim=8, num_heads=2, window_size=4).double()
    give(layer.conv.expand, *folded(mobile.conv1_1x1, mobile.norm1))
    give(layer.conv.depthwise, *folded(mobile.conv2_kxk, mobile.norm2))
    same(mobile, {"se.fc1": layer.conv.squeeze, "se.fc2": layer.conv.excite, "conv3_1x1": layer.conv.project})
    same(block, {"norm1": layer.block_norm, "norm2": layer.ffn_norm, "mlp.fc1": layer.ffn.fc1, "mlp.fc2": layer.ffn.fc2})
    same(grid, {"norm1": layer.grid_norm})
    for mine, theirs in ((layer.block_attention, block.attn), (layer.grid_attention, grid.attn)):
        same(theirs, {"qkv": mine.qkv, "proj": mine.proj})
        mine.relative_bias.table.data = theirs.rel_pos.relative_position_bias_table.T.unflatten(1, (7, 7))
    x = torch.randn(2, 8, 8, 12, dtype=torch.double)
    mine = (x + layer(x)).permute(0, 2, 3, 1)
    mine = mine + grid.mlp(grid.norm2(mine))
    assert torch.allclose(mine, grid(block(mobile(x).permute(0, 2, 3, 1))), rtol=0, atol=1e-10)


@pytest.mark.parametrize("num_scales, fourier", [(2, True), (3, False), (4, False)])
def test_edgenext_equals_timm_with_its_weights(num_scales, fourier):
    block = drawn(edgenext.SplitTransposeBlock(8, num_scales, num_heads=2, use_pos_emb=fourier))
    layer = lz.create_layer("edgenext", dim=8, num_heads=2, num_scales=num_scales, fourier=fourier).double()
    if fourier:
        same(block, {"pos_embd.token_projection": layer.position.proj})
    same(block, {f"convs.{i}": conv for i, conv in enumerate(layer.convs)} | {"norm_xca": layer.norm, "xca.qkv": layer.attention.qkv})
    give(layer.attention.proj, block.gamma_xca[:, None] * block.xca.proj.weight, block.gamma_xca * block.xca.proj.bias)
    layer.attention.temperature.data = block.xca.temperature.data
    x = torch.randn(2, 8, 5, 7, dtype=torch.double)
    mine = x + (block.gamma * block.mlp(block.norm(layer(x).permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
    assert torch.allclose(mine, block(x), rtol=0, atol=1e-10)


OPTIONS = {"dim": 10, "num_heads": 2, "key_dim": 3, "value_ratio": 2, "grid": (3, 4)}


def test_efficientformer_equals_timm_with_its_weights():
    theirs = drawn(efficientformer.Attention(10, key_dim=3, num_heads=2, attn_ratio=2, resolution=(3, 4)))
    layer = lz.create_layer("efficientformer", variant="v1", **OPTIONS).double()
    heads = torch.arange(24).view(2, 12).split((3, 3, 6), 1)  # theirs are head by head
    order = torch.cat([part.flatten() for part in heads])
    give(layer.qkv, theirs.qkv.weight[order], theirs.qkv.bias[order])
    same(theirs, {"proj": layer.proj})
    give_table(layer, theirs)
    x = torch.randn(2, 12, 10, dtype=torch.double)
    assert torch.allclose(layer(x), theirs(x), rtol=0, atol=1e-10)


def test_efficientformer_v2_equals_timm_with_its_weights():
    theirs = drawn(efficientformer_v2.Attention2d(10, key_dim=3, num_heads=2, attn_ratio=2, resolution=(3, 4)))
    layer = lz.create_layer("efficientformer", **OPTIONS).double()
    parts = [folded(m.conv, m.bn) for m in (theirs.q, theirs.k, theirs.v)]
    give(layer.qkv, torch.cat([weight for weight, _ in parts]), torch.cat([bias for _, bias in parts]))
    give(layer.local, *folded(theirs.v_local.conv, theirs.v_local.bn))
    give(layer.proj, *folded(theirs.proj.conv, theirs.proj.bn))
    same(theirs, {"talking_head1": layer.talk[0], "talking_head2": layer.talk[1]})
    give_table(layer, theirs)
    x = torch.randn(2, 10, 3, 4, dtype=torch.double)
    assert torch.allclose(layer(x), theirs(x), rtol=0, atol=1e-10)


@torch.no_grad()
def give_table(layer, theirs):
    layer.table.copy_(theirs.attention_biases.view_as(layer.table))


@pytest.mark.parametrize("name, options, message", [
    ("mobilevit", {"depth": 0}, "depth: got 0, expected a whole number >= 1. Choose a small one such as 2."),
    ("mobilevit", {"patch_size": 2.0}, "patch_size: got 2.0, expected a whole number >= 1. Choose a small one such as 2."),
    ("mobilevit", {"hidden_dim": 9, "num_heads": 2}, "num_heads: got 2, expected a divisor of dim=9. Choose one of 1, 3, 9."),
    ("mobilevit", {"mlp_ratio": 0}, "mlp_ratio: got 0, expected a number that leaves a hidden channel. Choose one such as 4."),
    ("mobilevit_v2", {"hidden_dim": 0}, "hidden_dim: got 0, expected a whole number >= 1. Choose a small one such as 2."),
    ("mobilevit_v2", {"kernel_size": 2}, "kernel_size: got 2, expected an odd whole number >= 1. Choose one such as 3, 5 or 7."),
    ("maxvit", {"window_size": 0}, "window_size: got 0, expected a whole number >= 1. Pass the side of a window in positions."),
    ("maxvit", {"expansion": 0.1}, "expansion: got 0.1, expected a number that leaves the MBConv a channel. The paper's is 4."),
    ("edgenext", {"num_scales": 1},
     "num_scales: got 1, expected 2 or more groups of ceil(8 / num_scales) channels, the last one shorter but not empty. "
     "The paper's are 2, 3 and 4."),
    ("edgenext", {"num_scales": 5}, "num_scales: got 5, expected 2 or more groups of ceil(8 / num_scales) channels, the last one"),
    ("efficientformer", {"grid": (2, 2), "variant": "v3"}, "variant: got 'v3', expected one of v1, v2. Choose one of these."),
    ("efficientformer", {"grid": (2, 2), "key_dim": 0}, "key_dim: got 0, expected a whole number >= 1. Choose a small one such as 2."),
    ("efficientformer", {"grid": (2, 2), "value_ratio": 1.5}, "value_ratio: got 1.5, expected a whole number >= 1."),
    ("uniformer", {"kind": "deep"}, "kind: got 'deep', expected one of global, local. Choose one of these."),
    ("inception_mixer", {"attention_dim": 7},
     "attention_dim: got 7, expected 1 to 6, two channels less than dim. The rest are convolved and pooled."),
    ("inception_mixer", {"pool_size": 0}, "pool_size: got 0, expected a whole number >= 1. Choose a small one such as 2."),
    ("conformer", {"attention_dim": 8}, "attention_dim: got 8, expected 1 to 7, less than dim. The rest are the convolution branch."),
    ("conformer", {"reduction": 0}, "reduction: got 0, expected a whole number >= 1. Choose a small one such as 2."),
    ("mixformer", {"dim": 1}, "dim of MixFormer: got 1, expected 2 or more, a half for each branch. Pass more channels."),
    ("mixformer", {"reduction": 0}, "reduction: got 0, expected a whole number >= 1. Choose a small one such as 2."),
])
def test_refusals(name, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        lz.create_layer(name, **{"dim": 8, **options})


def seen(layer, grid, place, channels=slice(None)):
    """(H, W) bool: the places on which these channels of the output at a place depend."""
    x = torch.randn(1, layer.dim, *grid, dtype=torch.double, requires_grad=True)
    y = layer.double()(x)[0, channels, place[0], place[1]].square().sum()
    return torch.autograd.grad(y, x)[0].abs().sum((0, 1)) > 1e-12


def square(grid, place, reach):
    """The places at most `reach` rows and columns away."""
    near = [(torch.arange(side) - p).abs() <= reach for side, p in zip(grid, place, strict=True)]
    return near[0][:, None] & near[1]


def spaced(grid, place, step):
    """The places that are rows and columns a multiple of `step` away."""
    hit = [(torch.arange(side) - p) % s == 0 for side, p, s in zip(grid, place, step, strict=True)]
    return hit[0][:, None] & hit[1]


@pytest.mark.parametrize("patch_size", [1, 2, 3])
def test_transformers_of_mobilevit_see_one_place_of_each_patch(patch_size):
    layer = lz.create_layer("mobilevit", dim=6, kernel_size=1, patch_size=patch_size)
    assert torch.equal(seen(layer, (7, 8), (4, 3)), spaced((7, 8), (4, 3), (patch_size, patch_size)))


@pytest.mark.parametrize("grid, step", [((8, 12), (2, 3)), ((3, 5), (1, 2)), ((9, 2), (3, 1))])
def test_grid_attention_sees_one_place_of_each_cell(grid, step):
    layer = lz.create_layer("maxvit", dim=8, window_size=4).grid_attention
    assert torch.equal(seen(layer, grid, (1, 1)), spaced(grid, (1, 1), step))


def test_maxvit_sees_all_while_its_windows_do_not():
    layer = lz.create_layer("maxvit", dim=8, window_size=3)
    assert seen(layer, (9, 9), (4, 4)).all() and seen(layer.block_attention, (9, 9), (4, 4)).sum() == 9


def test_scales_of_edgenext_see_further_and_further():
    layer = lz.create_layer("edgenext", dim=8)
    nn.init.zeros_(layer.attention.proj.weight)
    for scale, reach in enumerate((1, 2, 3, 0)):
        assert torch.equal(seen(layer, (9, 9), (4, 4), slice(2 * scale, 2 * scale + 2)), square((9, 9), (4, 4), reach))


@pytest.mark.parametrize("kernel_size", [1, 5])
def test_local_uniformer_sees_its_kernel_and_the_position_encoding(kernel_size):
    layer = lz.create_layer("uniformer", dim=6, kind="local", kernel_size=kernel_size)
    assert torch.equal(seen(layer, (9, 9), (4, 4)), square((9, 9), (4, 4), kernel_size // 2 + 1))


def test_only_attention_of_the_inception_mixer_sees_all():
    layer = lz.create_layer("inception_mixer", dim=8, kernel_size=3)
    assert seen(layer, (12, 12), (5, 5)).all()
    nn.init.zeros_(layer.attention.proj.weight)
    assert torch.equal(seen(layer, (12, 12), (5, 5)), square((12, 12), (5, 5), 2))


def test_branches_of_conformer_are_coupled_both_ways():
    layer = lz.create_layer("conformer", dim=8, reduction=1).double()
    x = torch.randn(1, 8, 6, 6, dtype=torch.double, requires_grad=True)

    def couplings():
        y = layer(x).square()
        return [torch.autograd.grad(y[:, out].sum(), x, retain_graph=True)[0][:, into].any().item() for out, into in (
            (slice(4), slice(4, 8)), (slice(4, 8), slice(4)))]

    assert couplings() == [True, True]
    nn.init.zeros_(layer.up.weight)
    assert couplings() == [False, True]
    nn.init.zeros_(layer.down_norm.weight)
    assert couplings() == [False, False]


def test_mixformer_sees_beyond_its_window_through_the_gate_of_channels_alone():
    layer = lz.create_layer("mixformer", dim=8, window_size=3)
    assert seen(layer, (9, 9), (4, 4)).all()
    nn.init.zeros_(layer.channels[2].weight)
    assert torch.equal(seen(layer, (9, 9), (4, 4)), square((9, 9), (4, 4), 1))
