"""Every preset at every size, any layer in any model, timm's method names, and back from the configuration."""

import json
import re

import pytest
import torch

import layerzoo as lz
from layerzoo.models.block import Block, DropPath, create_norm
from layerzoo.models.classic import WHOLE_BLOCKS
from layerzoo.models.isotropic import Isotropic
from layerzoo.models.presets import PRESETS
from layerzoo.models.pyramid import Pyramid
from layerzoo.models.stem import STEMS, create_stem
from layerzoo.registry import FFNS, LAYERS

SMALL = {"isotropic": {"dim": 32, "depth": 2, "block": {"num_heads": 2}}, "pyramid": {"dims": [16, 32], "depths": [1, 1], "ffn": "mlp"}}


def small(preset, **changes):
    kind = "pyramid" if preset == "hybrid_nano" else "isotropic"
    return lz.create_model(preset, num_classes=5, img_size=32, options=dict(SMALL[kind]), **changes).eval()


def shallow(preset, img_size):
    """A preset with two blocks of each stage, or one of each kind: the others are like these."""
    config = PRESETS[preset](img_size)
    count = [config["depth"]] if "depth" in config else config["depths"]
    layers = config["layer"] if isinstance(config["layer"], list) and "depths" in config else [config["layer"]] * len(count)
    count = [min(depth, max(2, len(kinds) if isinstance(kinds, list) else 1)) for depth, kinds in zip(count, layers)]
    return {"depths": count} if "depths" in config else {"depth": count[0]}


@pytest.mark.parametrize("img_size, classes", [(32, 10), (64, 50), (224, 1000)])
@pytest.mark.parametrize("preset", lz.list_models())
def test_presets_on_the_meta_device(preset, img_size, classes):
    with torch.device("meta"):
        model = lz.create_model(preset, num_classes=classes, img_size=img_size, options=shallow(preset, img_size))
        x = torch.empty(2, 3, img_size, img_size)
        assert model(x).shape == (2, classes)
        assert model.forward_features(x).shape[1] == model.num_features == model.forward_head(model.forward_features(x), pre_logits=True).shape[1]


@pytest.mark.parametrize("preset", lz.list_models())
def test_presets_learn_and_keep_channels_last(preset):
    torch.manual_seed(0)
    model = lz.create_model(preset, num_classes=3, img_size=32, options=shallow(preset, 32)).to(memory_format=torch.channels_last)
    x = torch.randn(4, 3, 32, 32).to(memory_format=torch.channels_last)
    loss = torch.nn.functional.cross_entropy(model(x), torch.tensor([0, 1, 2, 0]))
    loss.backward()
    for name, p in model.named_parameters():
        assert not p.requires_grad or (p.grad is not None and p.grad.isfinite().all()), name
    assert model.eval().forward_features(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("preset", ["vit_tiny", "hybrid_nano"])
@pytest.mark.parametrize("layer", LAYERS.names())
def test_any_layer_in_any_model_at_any_size(preset, layer):
    model = small(preset, layer=layer)
    for size in ((32, 32), (20, 44)):
        assert model(torch.randn(1, 3, *size)).shape == (1, 5)


@pytest.mark.parametrize("ffn", [*FFNS.names(), "none"])
def test_any_ffn(ffn):
    assert small("vit_tiny", ffn=ffn)(torch.randn(1, 3, 32, 32)).shape == (1, 5)


@pytest.mark.parametrize("position", ["none", "learned", "sincos2d", "conditional", "rope2d", "relative_bias"])
def test_any_position_and_what_it_does_to_shuffled_patches(position):
    model = small("vit_tiny", position=position)
    x = torch.randn(1, 3, 32, 32)
    patches = torch.nn.functional.unfold(x, 4, stride=4)[:, :, torch.randperm(64)]
    same = torch.allclose(model(x), model(torch.nn.functional.fold(patches, 32, 4, stride=4)), atol=1e-5)
    assert same is (position == "none")


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("size", [(1, 1), (32, 32), (17, 30)])
def test_stems_cover_the_image(stem, size):
    module = create_stem(stem, 3, 16).eval()
    assert module(torch.randn(2, 3, *size)).shape == (2, 16, *(-(-s // module.stride) for s in size))


def test_grey_levels_are_looked_up_as_whole_numbers():
    stem = create_stem("grey_levels", 3, 8)
    grey = torch.arange(256.0).repeat(2).view(2, 1, 16, 16).expand(-1, 3, -1, -1)
    images = (grey / 255 - 0.48) / 0.24
    stem.init_from_data(images)
    assert torch.equal(stem(images), stem.embed(grey[:, 0].long()).permute(0, 3, 1, 2))
    assert torch.equal(stem(images + 9)[..., 0, 0], stem.embed.weight[255].expand(2, -1)), "beyond white is white"


def test_a_patch_at_the_border_is_seen():
    stem = create_stem({"name": "patchify", "patch_size": 4}, 3, 8)
    x = torch.zeros(1, 3, 5, 5)
    y = x.clone()
    y[..., 4, 4] = 1
    assert not torch.equal(stem(x), stem(y))


@pytest.mark.parametrize("name", WHOLE_BLOCKS)
def test_classic_blocks_beside_layers(name):
    model = Pyramid(dims=[16, 24, 32], depths=[1, 2, 1], layer=[name, [name, "mhsa"], "linear_attention"], input_size=(3, 32, 32), num_classes=4)
    assert model(torch.randn(2, 3, 30, 26)).shape == (2, 4)


def test_intermediates():
    model = small("hybrid_nano")
    x = torch.randn(2, 3, 32, 32)
    last, maps = model.forward_intermediates(x)
    assert [m.shape for m in maps] == [(2, 16, 16, 16), (2, 32, 8, 8)] and torch.equal(last, model.forward_features(x))
    only = model.forward_intermediates(x, indices=[-2], stop_early=True, output_fmt="NLC", intermediates_only=True)
    assert [m.shape for m in only] == [(2, 256, 16)] and torch.equal(only[0], maps[0].flatten(2).transpose(1, 2))
    assert torch.equal(model.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)[0], last)
    with pytest.raises(ValueError, match=re.escape("indices: got 2, expected stages from -2 to 1. Ask for stages that exist.")):
        model.forward_intermediates(x, indices=[2])
    with pytest.raises(ValueError, match=re.escape("output_fmt: got 'NHWC', expected NCHW or NLC. Choose one of these.")):
        model.forward_intermediates(x, output_fmt="NHWC")


def test_reset_classifier():
    model = small("vit_tiny")
    model.reset_classifier(3)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 3) and model.config["num_classes"] == model.num_classes == 3
    model.reset_classifier(0)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 32)


@pytest.mark.parametrize("preset", lz.list_models())
def test_configuration_rebuilds_the_model(preset):
    with torch.device("meta"):
        model = lz.create_model(preset, num_classes=4, img_size=32, drop_path=0.1)
        again = lz.build_model(json.loads(json.dumps(model.config)))
    assert [(k, v.shape) for k, v in model.state_dict().items()] == [(k, v.shape) for k, v in again.state_dict().items()]
    assert json.dumps(again.config) == json.dumps(model.config)


def test_preset_options_pass_to_the_layer_that_takes_them():
    model = lz.create_model("vit_tiny", num_classes=2, img_size=32, layer={"name": "nystrom", "num_landmarks": 8}, options={"depth": 1})
    assert (model.stages[0].layer.num_heads, model.stages[0].layer.num_landmarks) == (3, 8)


def test_layers_cycle_and_drop_path_rises():
    model = Isotropic(dim=16, depth=4, layer=["mhsa", "identity"], block={"drop_path": 0.3}, input_size=(3, 32, 32), num_classes=2)
    assert [type(b.layer).__name__ for b in model.stages] == ["MHSA", "Identity"] * 2
    rates = [next((m.drop for m in b.layer_branch if isinstance(m, DropPath)), 0) for b in model.stages]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])


def test_drop_path_keeps_the_mean_and_drops_whole_samples():
    y = DropPath(0.25).train()(torch.ones(4000, 2, 3, 3))
    assert y.unique().tolist() == pytest.approx([0, 4 / 3]) and abs(y.mean() - 1) < 0.05
    assert (y.flatten(1).std(1) == 0).all()
    assert torch.equal(DropPath(0.25).eval()(y), y)


def test_block_is_the_residual_unit():
    block = lz.create_block({"name": "mhsa", "num_heads": 2}, dim=16, ffn="mlp", drop_path=0.1, layer_scale=0.5).eval()
    x = torch.randn(2, 16, 5, 3)
    a = x + 0.5 * block.layer(block.norm(x))
    assert torch.allclose(block(x), a + 0.5 * block.ffn(block.ffn_norm(a)), atol=1e-6)
    bare = Block(16, layer="identity", ffn="none", norm="none")
    assert torch.equal(bare(x), 2 * x)


def test_norms():
    x = torch.randn(3, 8, 4, 5) * 3 + 1
    assert create_norm("layer", 8)(x).mean(1).abs().max() < 1e-5
    assert create_norm("group", 8)(x).mean((1, 2, 3)).abs().max() < 1e-5
    assert create_norm("batch", 8)(x).mean((0, 2, 3)).abs().max() < 1e-5
    assert torch.equal(create_norm("none", 8)(x), x)


def test_whitening_whitens():
    stem = create_stem("whitening", 3, 24)
    images = torch.randn(64, 3, 16, 16).cumsum(2)
    stem.init_from_data(images)
    patches = torch.nn.functional.unfold(images, 2).transpose(1, 2).flatten(0, 1)
    white = patches @ stem.filters[:12].flatten(1).T
    assert torch.allclose(white.T @ white / len(white), torch.eye(12), atol=0.05)
    assert torch.equal(stem.filters[12:], -stem.filters[:12])


def test_timm_makes_our_models():
    timm = pytest.importorskip("timm")
    import layerzoo.timm  # noqa: F401

    assert set(timm.list_models("layerzoo_*")) == {f"layerzoo_{n}" for n in lz.list_models()}
    model = timm.create_model("layerzoo_hybrid_nano", num_classes=6, img_size=32, drop_path_rate=0.2, layer="performer")
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 6)
    with pytest.raises(ValueError, match=re.escape("pretrained: got True, expected False. Load trained weights with layerzoo.load(NAME); layerzoo.list_checkpoints() lists them.")):
        timm.create_model("layerzoo_vit_tiny", pretrained=True)


@pytest.mark.parametrize("call, message", [
    (lambda: lz.create_model("vit_tinny"), "model: got 'vit_tinny', expected a known name such as vit_tiny, "),
    (lambda: lz.create_model("vit_tiny", layer="performr"), "layers name: got 'performr', expected a known name such as performer, "),
    (lambda: lz.create_model("vit_tiny", layer={"name": "mhsa", "heads": 2}), "option of MHSA: got 'heads', expected a known name such as num_heads, "),
    (lambda: lz.create_model("vit_tiny", options={"deep": 2}), "argument of isotropic: got 'deep', expected a known name such as depth, "),
    (lambda: lz.create_model("vit_tiny", stem="patch"),
     "stem: got 'patch', expected a known name such as patchify, conv, overlap. layerzoo.models.stem.STEMS lists all."),
    (lambda: lz.create_model("vit_tiny", position="rope"), "positions name: got 'rope', expected a known name such as rope2d, "),
    (lambda: lz.create_model("vit_tiny", layer="pooling", position="rope2d"), "option of Pooling: got 'position', expected a known name such as "),
    (lambda: lz.create_model("resnet18", layer=["basic"]), "layer: got 1 entries, expected one per stage, 4 as in dims. Give one entry for each stage."),
    (lambda: lz.create_model("resnet18", layer={"name": "basic", "strid": 1}),
     "option of basic: got 'strid', expected a known name such as stride, dim, dim_in. help(layerzoo.models.classic) lists all."),
    (lambda: lz.create_model("vit_tiny", layer={"num_heads": 2}), "layers spec: got {'num_heads': 2}, expected a dict with the key 'name'. "),
    (lambda: lz.build_model({"model": "isotropc"}), "model: got 'isotropc', expected one of isotropic, pyramid. Pass the config of a layerzoo model."),
    (lambda: create_norm("instance", 4), "norm: got 'instance', expected one of layer, group, batch, none. Choose one of these."),
    (lambda: small("vit_tiny")(torch.zeros(1, 1, 32, 32)), "input of Isotropic: got (1, 1, 32, 32), expected images (B, 3, H, W). Check the number of channels and the layout."),
])
def test_refusals(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_a_class_of_ones_own():
    @lz.register_layer
    class HalfRoll(lz.Layer):
        card = lz.Card(title="t", paper="", year=2026, cost=(1, 1), sizes={})

        def mix(self, x):
            return x.roll(1, 2) / 2

    try:
        model = lz.create_model("vit_tiny", num_classes=2, img_size=32, layer="half_roll", options={"depth": 1})
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 2)
    finally:
        del LAYERS.registered["half_roll"]
