"""Layers in place of the attention of public models: equal at their limits, prefix tokens kept, weights accounted for, refusals."""

import copy
import re

import pytest
import timm
import torch
from torch import nn
from torchvision.models import VisionTransformer

import layerzoo as lz
from layerzoo.models import build_model
from layerzoo.models.block import create_block
from layerzoo.models.slots import MultiheadSlot, TokenSlot, TransformersSlot, WindowSlot
from layerzoo.models.surgery import Swap, swap

SMALL = {"img_size": 32, "patch_size": 8, "depth": 2, "num_classes": 5, "embed_dim": 24, "num_heads": 3}  # 4 x 4 places
LONGFORMER = {"name": "longformer", "window_size": 80, "num_global": 0}


def drawn(model, std=0.3):
    """Every parameter moved, in float64 and eval mode, so that scores are far from equal."""
    model = model.double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(std * torch.randn_like(p))
    return model


def images(count=2):
    return torch.randn(count, 3, 32, 32, dtype=torch.double)


def vit(**options):
    return timm.create_model("vit_tiny_patch16_224", **SMALL | options)


def deit():
    return timm.create_model("deit_tiny_distilled_patch16_224", **SMALL)


def cait():
    return timm.create_model("cait_xxs24_224", **SMALL)


def swin(**options):
    sizes = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 3), "num_classes": 5}
    return timm.create_model("swin_tiny_patch4_window7_224", **sizes | options)


def torchvision_vit():
    return VisionTransformer(image_size=32, patch_size=8, num_layers=2, num_heads=3, hidden_dim=24, mlp_dim=32, num_classes=5)


def layerzoo_vit(**options):
    stem, options = {"name": "patchify", "patch_size": 8}, {"dim": 24, "depth": 2} | options
    return lz.create_model("vit_tiny", img_size=32, num_classes=5, stem=stem, options=options)


HOSTS = {"vit": vit, "registers": lambda: vit(reg_tokens=2), "no_prefix": lambda: vit(class_token=False, global_pool="avg"), "deit": deit,
         "no_bias": lambda: vit(qkv_bias=False), "torchvision": torchvision_vit, "layerzoo": layerzoo_vit,
         "layerzoo_prefix": lambda: layerzoo_vit(num_prefix=2, head={"pool": "first"})}
NAMES = {"torchvision": ["encoder.layers.encoder_layer_0.self_attention", "encoder.layers.encoder_layer_1.self_attention"],
         **dict.fromkeys(("layerzoo", "layerzoo_prefix"), ["stages.0.layer", "stages.1.layer"])}


@pytest.mark.parametrize("host", HOSTS)
def test_every_host_keeps_its_logits(host):
    model, x = drawn(HOSTS[host]()), images()
    before = model(x)
    swaps = swap(model, LONGFORMER)
    assert [s.name for s in swaps] == NAMES.get(host, ["blocks.0.attn", "blocks.1.attn"])
    assert all((s.fresh, s.dropped, s.num_apart, s.new) == ((), (), 0, "Longformer") for s in swaps)
    torch.testing.assert_close(model(x), before, atol=1e-10, rtol=0)
    model.get_submodule(swaps[0].name).get_parameter(swaps[0].inherited[0]).data.mul_(2)
    assert (model(x) - before).abs().max() > 1e-4


LIMITS = {
    "mhsa": {}, "chunked_exact": {"key_chunk_size": 5}, "nystrom": {"num_landmarks": 17, "conv_kernel": 0, "num_iterations": 60},
    "blockwise": {"block_size": 17}, "linformer": {"num_landmarks": 17, "grid": (1, 17)},
}


@pytest.mark.parametrize("name", LIMITS)
def test_limits_give_the_same_logits(name):
    model, x = drawn(vit()), images()
    before = model(x)
    swap(model, {"name": name} | LIMITS[name])
    with torch.no_grad():
        for attribute in ("key_rows", "value_rows") if name == "linformer" else ():
            for block in model.blocks:
                getattr(block.attn.layer, attribute).copy_(torch.eye(17))
    torch.testing.assert_close(model(x), before, atol=1e-4, rtol=0)


def test_talking_heads_that_are_silent():
    model, x = drawn(cait()), images()
    for block in model.blocks:
        for talk in (block.attn.proj_l, block.attn.proj_w):
            nn.init.eye_(talk.weight)
            nn.init.zeros_(talk.bias)
    before = model(x)
    swaps = swap(model, "mhsa")
    assert swaps[0].dropped == ("proj_l.weight", "proj_l.bias", "proj_w.weight", "proj_w.bias")
    assert [s.name for s in swaps] == ["blocks.0.attn", "blocks.1.attn"] and type(model.blocks_token_only[0].attn).__name__ == "ClassAttn"
    torch.testing.assert_close(model(x), before, atol=1e-10, rtol=0)


@pytest.mark.parametrize("height", [32, 48])
def test_swin_keeps_its_logits_with_windows_of_the_whole_map(height):
    model, x = drawn(swin(img_size=(height, 32))), torch.randn(2, 3, height, 32).double()
    before = model(x)
    swaps = swap(model, "window_attention")
    assert [model.get_submodule(s.name).layer.shift for s in swaps[:2]] == [False, True]
    assert all(s.inherited[-1] == "layer.relative_bias.table" and not s.fresh + s.dropped for s in swaps)
    torch.testing.assert_close(model(x), before, atol=1e-10, rtol=0)
    assert swap(model, "mhsa")[0].dropped == ("layer.relative_bias.table",)
    slot = model.layers[0].blocks[1].attn
    assert model(x).isfinite().all() and type(slot) is WindowSlot and slot.grid == (height // 2, 16)
    alone = slot.layer(tokens := torch.randn(1, height * 8, 24).double())
    torch.testing.assert_close(slot(tokens), alone)


def test_a_layer_that_needs_a_map_leaves_prefix_tokens_their_exact_attention():
    model = drawn(deit())
    old, x = model.blocks[0].attn, torch.randn(2, 18, 24, dtype=torch.double)
    expected = old(x)[:, :2]
    for layer in ("window_attention", "depthwise_conv", "criss_cross", "relu_linear"):
        twin = copy.deepcopy(model)
        done, new = swap(twin, layer)[0], twin.blocks[0].attn
        has_qkv = layer in ("window_attention", "relu_linear")
        assert done.num_apart == 2 and done.inherited[0] == ("layer.qkv.weight" if has_qkv else "prefix.qkv.weight")
        y = new(x)
        torch.testing.assert_close(y[:, :2], expected, atol=1e-10, rtol=0)
        other = x.clone()
        other[:, :2] += 1
        assert torch.equal(new(other)[:, 2:], y[:, 2:]), "places do not see prefix tokens"
        torch.testing.assert_close(y[:, 2:], new.layer(x[:, 2:].mT.unflatten(2, (4, 4))).flatten(2).mT)


def test_the_report():
    model = drawn(deit())
    lines = [str(s) for s in swap(model, ["depthwise_conv", {"name": "longformer", "qkv_bias": False}])]
    assert lines[0] == (
        "blocks.0.attn: Attention -> DepthwiseConv; inherited prefix.qkv.weight, prefix.qkv.bias, prefix.proj.weight, prefix.proj.bias; "
        "fresh layer.conv.weight, layer.conv.bias; 2 prefix tokens apart")
    assert lines[1] == (
        "blocks.1.attn: Attention -> Longformer; inherited layer.qkv.weight, layer.proj.weight, layer.proj.bias; "
        "fresh layer.query_global.weight, layer.key_value_global.weight; dropped qkv.bias")
    assert set(swap(vit(qk_norm=True), "mhsa")[0].dropped) == {f"{n}_norm.{kind}" for n in "qk" for kind in ("weight", "bias")}
    assert str(Swap("a.attn", "Attention", "Identity", (), (), ())) == "a.attn: Attention -> Identity; no parameters"


def test_where_inherit_and_frozen_weights():
    model = vit(depth=3).half()
    model.requires_grad_(False)
    before = {n: p.clone() for n, p in model.named_parameters()}
    swaps = swap(model, "nystrom", where="blocks.[12].attn")
    assert [s.name for s in swaps] == ["blocks.1.attn", "blocks.2.attn"]
    new = model.blocks[1].attn.layer
    assert torch.equal(new.qkv.weight, before["blocks.1.attn.qkv.weight"]) and not new.qkv.weight.requires_grad
    assert new.conv.weight.requires_grad and new.conv.weight.dtype == torch.half and new.num_heads == 3 and new.training
    fresh = swap(model, "mhsa", where="blocks.0.attn", inherit=False)[0]
    weight = model.blocks[0].attn.layer.qkv.weight
    assert fresh.inherited == () and len(fresh.dropped) == 4 and weight.requires_grad
    assert not torch.equal(weight, before["blocks.0.attn.qkv.weight"])


def test_a_swap_can_be_swapped():
    model, x = drawn(deit()), images()
    before = model(x)
    swap(model, "depthwise_conv")
    assert swap(model, "external")[0].inherited == ()
    assert swap(model, "depthwise_conv")[0].inherited == ()
    model = drawn(deit())
    before = model(x)
    swap(model, "depthwise_conv")
    swap(model, "window_attention")
    done = swap(model, "mhsa")[0]
    assert (done.old, done.new, done.dropped) == ("WindowAttention", "MHSA", ("layer.relative_bias.table",))
    torch.testing.assert_close(model(x), before, atol=1e-10, rtol=0)


@pytest.mark.parametrize("layer", ["nystrom", "window_attention", "depthwise_conv"])
def test_gradients_and_state_dict(layer):
    first, second, x = deit(), deit(), images().float()
    for model in (first, second):
        swap(model, layer)
    first(x).square().sum().backward()
    assert [n for n, p in first.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.eval()(x), second.eval()(x)) and torch.equal(copy.deepcopy(first)(x), first(x))


def test_export_and_cost():
    model = timm.create_model("vit_tiny_patch16_224", **SMALL | {"patch_size": 2, "depth": 1}).eval()  # 256 places
    x, before = torch.randn(1, 3, 32, 32), lz.cost(model, (1, 3, 32, 32))
    swap(model, {"name": "longformer", "window_size": 16})
    assert lz.cost(model, (1, 3, 32, 32)).flops < before.flops
    swap(model, "depthwise_conv")
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))


PYRAMID = {"img_size": 32, "num_classes": 5, "options": {"dims": [16, 24], "depths": [1, 2]}}


@pytest.mark.parametrize("make, layer, where, expected", [
    (layerzoo_vit, "nystrom", None, {"name": "nystrom", "num_heads": 3, "qkv_bias": True}),
    (layerzoo_vit, "identity", "stages.1.*", ["mhsa", {"name": "identity"}]),
    (lambda: layerzoo_vit(position="rope2d"), {"name": "mhsa", "num_heads": 4}, None, {"name": "mhsa", "num_heads": 4, "qkv_bias": True}),
    (lambda: layerzoo_vit(num_prefix=1), "depthwise_conv", "stages.0.layer", [{"name": "depthwise_conv"}, "mhsa"]),
    (lambda: layerzoo_vit(num_prefix=1, layer="window_attention"), "hydra", None, {"name": "hydra", "qkv_bias": True}),
    (lambda: lz.create_model("hybrid_nano", **PYRAMID), ["mhsa", "performer"], "*.layer",
     [{"name": "mhsa"}, [{"name": "performer", "num_heads": 1, "qkv_bias": True}, {"name": "mhsa", "num_heads": 1, "qkv_bias": True}]]),
    (lambda: lz.create_model("hybrid_nano", **PYRAMID, layer="mhsa"), "linformer", "stages.1.blocks.1.layer",
     ["mhsa", ["mhsa", {"name": "linformer", "num_heads": 1, "qkv_bias": True}]]),
], ids=["all", "one", "rotary", "prefix_apart", "prefix", "pyramid", "one_for_all_stages"])
def test_a_layerzoo_model_s_config_follows(make, layer, where, expected):
    model, x = make().eval(), torch.randn(2, 3, 32, 32)
    swap(model, layer, where)
    assert model.config["layer"] == expected
    twin = build_model(model.config).eval()
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(x), model(x))


def test_a_layer_of_the_same_class_inherits_all_that_fits_and_a_block_alone_will_do():
    block, x = create_block("linformer", 24, grid=(4, 4)), torch.randn(2, 24, 4, 4)
    before = block(x)
    done = swap(block, "linformer", inherit=True)[0]
    assert done.name == "layer" and not done.fresh and torch.equal(block(x), before)
    done = swap(block, {"name": "linformer", "num_landmarks": 3, "grid": (4, 4)})[0]
    assert done.fresh == ("key_rows", "value_rows") == done.dropped
    assert swap(create_block("depthwise_conv", 24), "conv", where="layer")[0].inherited == ()


FACES = {
    "ViTForImageClassification": ("ViTConfig", 1), "DeiTForImageClassification": ("DeiTConfig", 2),
    "Dinov2ForImageClassification": ("Dinov2Config", 1),
    "Dinov2WithRegistersForImageClassification": ("Dinov2WithRegistersConfig", 5),
}


@pytest.mark.parametrize("name", FACES)
def test_transformers(name):
    transformers = pytest.importorskip("transformers")
    config, num_prefix = FACES[name]
    config = getattr(transformers, config)(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=32, mlp_ratio=2, image_size=32, patch_size=8,
        num_labels=5)
    model, x = drawn(getattr(transformers, name)(config)), images()
    before = model(x).logits
    assert len(swap(model, LONGFORMER)) == 2
    torch.testing.assert_close(model(x).logits, before, atol=1e-10, rtol=0)
    assert swap(model, "window_attention")[1].num_apart == num_prefix
    hidden = model(x, output_hidden_states=True).hidden_states
    assert len(hidden) == 3 and hidden[-1].shape == (2, 16 + num_prefix, 24)
    message = "output_attentions of WindowAttention: got True, expected False: a layer returns no attention weights. "
    with pytest.raises(ValueError, match=re.escape(message + "Leave it out; layerzoo.effective_matrix shows what a layer sees.")):
        model(x, output_attentions=True)


@pytest.mark.parametrize("make, layer, where, message", [
    (cait, "mhsa", "blocks_token_only.*",
     "module to swap: got blocks_token_only.0.attn (ClassAttn), expected one that a layer can stand for. "
     "Leave it out of where: it answers for the class token alone, and a layer answers for every token."),
    (vit, "mhsa", "blocks.*.mlp*",
     "where: got 'blocks.*.mlp*', which matches Dropout, GELU, Identity, Linear, Mlp alone, "
     "expected the names of attention that is known: blocks.0.attn, blocks.1.attn. help(layerzoo.swap) lists the kinds."),
    (vit, "mhsa", "layers.*",
     "where: got 'layers.*', which matches nothing, expected the names of attention that is known: blocks.0.attn, blocks.1.attn. "
     "help(layerzoo.swap) lists the kinds."),
    (lambda: nn.Sequential(nn.Linear(2, 2)), "mhsa", None,
     "model: got Sequential, expected one with attention of a known kind. help(layerzoo.swap) lists the kinds."),
    (lambda: vit().blocks, "mhsa", None,
     "model around 0.attn: got Sequential, expected one that embeds the patches this module sees. "
     "Pass the whole model, with its patch embedding."),
    (lambda: timm.create_model("vit_tiny_patch16_224", **SMALL, embed_layer=SizelessEmbed), "window_attention", None,
     "map of WindowAttention: got a model without a size, expected (H, W), which this layer needs. "
     "Build the model for one image size, or choose a layer of layerzoo.list_layers(needs_grid=False)."),
    (vit, {"name": "mhsa", "num_head": 3}, None, "option of MHSA: got 'num_head', expected a known name such as "),
    (vit, {"num_heads": 3}, None, "layers spec: got {'num_heads': 3}, expected a dict with the key 'name'. Add name: <one of the listed>."),
], ids=["class_attention", "no_attention", "nothing", "unknown", "no_patches", "no_size", "option", "no_name"])
def test_refused_before_anything_changes(make, layer, where, message):
    model = make()
    before = [type(m) for m in model.modules()]
    with pytest.raises(ValueError, match=re.escape(message)):
        swap(model, layer, where)
    assert [type(m) for m in model.modules()] == before


class SizelessEmbed(timm.layers.PatchEmbed):
    """A patch embedding that forgets its size."""

    def __init__(self, **options):
        super().__init__(**options)
        self.grid_size = None


@pytest.mark.parametrize("name, options, reason", [
    ("swinv2_tiny_window8_256", {"depths": (1,), "num_heads": (3,)}, "its masks and its cosine scores belong to its windows"),
    ("eva02_tiny_patch14_224", {"depth": 1}, "its model hands it rotary positions, which no layer takes"),
])
def test_attention_that_no_layer_can_stand_for(name, options, reason):
    with pytest.raises(ValueError, match=re.escape(f"Leave it out of where: {reason}.")):
        swap(timm.create_model(name, **options), "mhsa")


def test_calls_that_are_refused():
    layer, x = lz.create_layer("window_attention", dim=8), torch.randn(2, 16, 8)
    mask = (
        "mask of WindowAttention: got a mask of the model, expected none: a swapped layer sees the whole image. "
        "Mask nothing, or leave this module as it is.")
    seen = torch.ones(2, 16, dtype=torch.bool)
    for call in (
            lambda: TokenSlot(layer, 0, (4, 4))(x, attn_mask=seen), lambda: TokenSlot(layer, 0, (4, 4))(x, is_causal=True),
            lambda: WindowSlot(layer, 0, (4, 4))(x, mask=seen), lambda: TransformersSlot(layer, 0, (4, 4))(x, seen),
            lambda: MultiheadSlot(layer, 0, (4, 4))(x, x, x, key_padding_mask=seen, need_weights=False)):
        with pytest.raises(ValueError, match=re.escape(mask)):
            call()
    message = "input of WindowAttention: got other keys or values than queries, expected self-attention. Pass (x, x, x, need_weights"
    with pytest.raises(ValueError, match=re.escape(message)):
        MultiheadSlot(layer, 0, (4, 4))(x, x + 1, x, need_weights=False)
    with pytest.raises(ValueError, match=re.escape("need_weights of WindowAttention: got True, expected False")):
        MultiheadSlot(layer, 0, (4, 4))(x, x, x)
    message = "window of WindowAttention: got (2, 4), expected the whole map (4, 4). Set the sizes of the model first, then swap."
    with pytest.raises(ValueError, match=re.escape(message)):
        WindowSlot(layer, 0, (4, 4)).set_window_size((2, 4))
    message = (
        "places of WindowAttention: got 15, expected 16 of the map 4 x 4 that the model was built for. "
        "Keep the image size and drop no patches, or swap again after a change of size.")
    with pytest.raises(ValueError, match=re.escape(message)):
        TokenSlot(layer, 1, (4, 4))(x)


def test_prefix_tokens_beside_shared_keys_have_projections_of_their_own():
    model = lz.create_model("vit_tiny", num_classes=3, img_size=16, options={"dim": 8, "depth": 1, "block": {"num_heads": 2}})
    spec = {"name": "mhsa", "position": "rope2d", "num_kv_heads": 1}
    timm_model = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=8, num_heads=2, depth=1, num_classes=3)
    for host, x in ((model, torch.randn(1, 3, 16, 16)), (timm_model, torch.randn(1, 3, 32, 32))):
        lz.swap(host, spec)
        assert host(x).shape == (1, 3)
