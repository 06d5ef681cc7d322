"""Presets with timm's weights give timm's logits."""

import re

import pytest
import torch
from torch import nn

import layerzoo as lz
from layerzoo.models.port import PORTS, from_timm

timm = pytest.importorskip("timm")
SMALL = {  # timm's architecture, the least size that works, and options for it
    "resnet18": ("resnet18", 32, {}), "resnet34": ("resnet34", 32, {}), "resnet50": ("resnet50", 32, {}),
    "deit_tiny": ("deit_tiny_patch16_224", 32, {"img_size": (32, 32)}), "mixer_s16": ("mixer_s16_224", 32, {"img_size": 32}),
    "convnext_tiny": ("convnext_tiny", 32, {}), "inception_next_tiny": ("inception_next_tiny", 32, {}),
    "poolformer_s12": ("poolformer_s12", 64, {}), "focalnet_tiny_srf": ("focalnet_tiny_srf", 32, {}),
    "swin_tiny": ("swin_tiny_patch4_window7_224", 224, {}), "swinv2_tiny": ("swinv2_tiny_window8_256", 256, {}),
    "pvt_v2_b0": ("pvt_v2_b0", 64, {}), "gmlp_s16": ("gmlp_s16_224", 32, {"img_size": 32}),
    "efficientformer_l1": ("efficientformer_l1", 224, {}), "levit_128s": ("levit_128s", 112, {"img_size": 112}),
    "edgenext_xx_small": ("edgenext_xx_small", 64, {}), "coatnet_0": ("coatnet_0_224", 64, {"img_size": 64}),
    "mvitv2_tiny": ("mvitv2_tiny", 224, {}), "maxvit_tiny": ("maxvit_tiny_tf_224", 224, {}), "twins_svt_small": ("twins_svt_small", 224, {}),
    "xcit_nano_12_p16": ("xcit_nano_12_p16_224", 64, {"img_size": 64}),
    "cait_xxs24": ("cait_xxs24_224", 32, {"img_size": 32}), "mobilevit_s": ("mobilevit_s", 64, {}), "mobilevitv2_100": ("mobilevitv2_100", 64, {}),
}
SLOW = ("resnet34", "swinv2_tiny")  # of a kind with another
UNSEEN = {  # parameters that say nothing: norms, differences and softmax take a constant away, and the drawn LeViT has flat last maps
    "mixer_s16": r".*\.layer\.fc2\.bias", "poolformer_s12": r".*\.norm\.bias", "levit_128s": r"stages\.[12]\..*(table|query.*)",
    "mvitv2_tiny": r".*\.pools\.1\.norm\.bias"}


def drawn(model):
    """Norms, scales, biases and statistics drawn too: where they start as ones and zeros they would hide mistakes."""
    torch.manual_seed(0)
    for name, value in model.state_dict().items():
        if value.ndim <= 1 and value.is_floating_point():
            value.uniform_(0.5, 1.5) if name.endswith(("weight", "var", "gamma", "scale")) else value.normal_(std=0.2)
        elif value.is_floating_point() and (not value.any() or any(part in name for part in ("table", "token", "pos", "biases", "gate.proj"))):
            value.normal_(std=0.2)
    return model.double().eval()


def unseen(model, x):
    """Names of parameters that do not show in logits, so that a wrong one would not either."""
    logits = model(x)
    slopes = torch.autograd.grad((logits * torch.randn_like(logits)).sum(), list(model.parameters()))
    return [name for (name, _), slope in zip(model.named_parameters(), slopes) if slope.abs().max() < 1e-6 * logits.abs().max()]


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in PORTS])
def test_port_gives_timms_logits(name):
    architecture, size, options = SMALL[name]
    model = drawn(timm.create_model(architecture, num_classes=7, **options))
    x = torch.randn(1, 3, size, size, dtype=torch.float64)
    with torch.no_grad():
        expected, ours = model(x), from_timm(model, name)
        assert (ours(x) - expected).abs().max() < 1e-8 * expected.abs().max()
    assert [n for n in unseen(ours, x) if not re.fullmatch(UNSEEN.get(name, ""), n)] == []


@pytest.mark.parametrize("architecture, options", [
    ("levit_128s", {"img_size": (112, 80)}), ("levit_conv_128s", {"img_size": (80, 112)}), ("levit_128s", {"img_size": (112, 16), "distilled": False})])
def test_norms_of_levit_are_folded(architecture, options):
    """With the statistics of a batch, without which its last maps are flat and hide mistakes."""
    model, x = drawn(timm.create_model(architecture, num_classes=7, **options)), torch.randn(6, 3, *options["img_size"], dtype=torch.float64)
    for norm in model.modules():
        if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
            norm.momentum = 1.0
    with torch.no_grad():
        model.train()(x)
        expected, ours = model.eval()(x), from_timm(model, "levit_128s")
        assert expected.std(0).min() > 0.01 and ours.forward_features(x).flatten(2).std(2).mean() > 0.01
        assert (ours(x) - expected).abs().max() < 1e-8
    assert unseen(ours, x) == []
    with torch.no_grad():
        ours.stages[1].downsample.table[0, 0, 0] += 1  # of queries and keys at one place
        assert (ours(x) - expected).abs().max() > 1e-4


def test_a_port_of_coatnet_is_for_oblong_images():
    model, x = drawn(timm.create_model("coatnet_0_224", num_classes=3, img_size=(64, 96))), torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.inference_mode():
        assert torch.allclose(from_timm(model, "coatnet_0")(x), model(x), rtol=1e-10)


def test_a_port_is_as_its_model_is():
    model = timm.create_model("resnet18", in_chans=1, num_classes=3).train()
    ours = from_timm(model, "resnet18")
    assert ours.training and (ours.in_chans, ours.num_classes, ours.img_size) == (1, 3, (224, 224))
    assert from_timm(model.half().eval(), "resnet18").head.fc.weight.dtype == torch.float16


def test_layers_of_a_port_are_swapped():
    model = timm.create_model("vit_tiny_patch16_224", img_size=(32, 48), num_classes=3).eval()
    ours, x = from_timm(model, "deit_tiny"), torch.randn(1, 3, 32, 48)
    assert torch.allclose(ours(x), model(x), atol=1e-5)
    swapped = lz.swap(ours, "linear_attention", where="stages.11.*")
    assert [s.name for s in swapped] == ["stages.11.layer"] and "layer.qkv.weight" in swapped[0].inherited
    assert ours(x).shape == (1, 3)


def altered(change):
    model = timm.create_model("resnet18", num_classes=3)
    change(model)
    return model


@pytest.mark.parametrize("make, name, message", [
    (lambda: nn.Identity(), "resnet19", "model to port: got 'resnet19', expected a known name such as resnet18, "),
    (lambda: nn.Identity(), "resnet18", "model to port to resnet18: got Identity, expected one of timm's resnet18. Choose the preset of this architecture."),
    (lambda: altered(lambda m: None), "resnet34", "model to port to resnet34: got resnet18, expected one of timm's resnet34. "),
    (lambda: altered(lambda m: setattr(m, "gate", nn.Linear(2, 1, bias=False))), "resnet18",
     "weights for resnet18: got left over gate.weight, expected those of the preset. Build the model with timm's own options."),
    (lambda: altered(lambda m: setattr(m, "fc", nn.Identity())), "resnet18", "weights for resnet18: got missing head.fc.weight, head.fc.bias, expected "),
    (lambda: altered(lambda m: setattr(m, "fc", nn.Linear(512, 4))), "resnet18", "weights for resnet18: got of another shape head.fc.weight, head.fc.bias, expected "),
])
def test_refusals(make, name, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        from_timm(make(), name)
