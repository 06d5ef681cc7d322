"""Fused models: the same function to the last digits, and nothing fused that is not one linear map."""

import re

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import mobilenet_v2

import layerzoo as lz
from layerzoo.models.fusion import fuse

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def drawn(model):
    """Batch norms with statistics and weights as after training, in float64 and eval mode."""
    for m in model.modules():
        if isinstance(m, NORMS) and m.running_mean is not None:
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
            for p in m.parameters():
                nn.init.uniform_(p, 0.5, 1.5)
    return model.double().eval()


def norms(model):
    return sum(isinstance(m, NORMS) for m in model.modules())


def check(model, x, left):
    """`left` batch norms are left, the function is the same, and the model is as it was."""
    model, before = drawn(model), norms(model)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    fused = fuse(model)
    assert norms(model) == before and all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert norms(fused) == left
    expected = model(x)
    torch.testing.assert_close(fused(x), expected, rtol=1e-12, atol=1e-12 * expected.abs().max().item())
    return fused


def image(*shape):
    return torch.randn(*shape or (2, 3, 32, 32), dtype=torch.double)


@pytest.mark.parametrize("name, options, left", [
    ("resnet18", {}, 0), ("speednet", {}, 3),
    ("coatnet_micro", {"dims": [16, 24], "depths": [1, 1], "layer": ["mbconv", "mhsa"]}, 1),
    ("mobilevit_s", {"dims": [8] * 5, "depths": [1, 2, 2, 1, 1]}, 0),
    ("hybrid_nano", {}, 0), ("poolformer_micro", {"dims": [8, 16], "depths": [1, 1]}, 0), ("vit_tiny", {"dim": 24, "depth": 1}, 0),
])
def test_presets(name, options, left):
    """A norm before its convolution, after pooling or after a residual is left as it is."""
    model = lz.create_model(name, num_classes=5, img_size=32, options=options)
    fused = check(model, image(), left)
    if norms(model):
        assert lz.cost(fused, (1, 3, 32, 32), torch.double).params < lz.cost(model, (1, 3, 32, 32), torch.double).params


def test_public_models():
    check(timm.create_model("resnet18", num_classes=5), image(1, 3, 32, 32), 0)
    check(mobilenet_v2(num_classes=5, width_mult=0.25), image(1, 3, 32, 32), 0)


def test_branches():
    model = lz.create_model("hybrid_nano", num_classes=5, img_size=32, layer=["repvgg_conv", "mhsa"])
    fused = check(model, image(), 0)
    assert type(fused.stages[0].blocks[0].layer).__name__ == "Conv"
    layer = lz.create_layer("repvgg_conv", dim=8)
    assert type(check(layer, image(1, 8, 5, 6), 0)).__name__ == "Conv"


class Own(nn.Module):
    """Fuses itself."""

    def __init__(self):
        super().__init__()
        self.scale = 2.0

    def forward(self, x):
        return x * self.scale

    def fuse(self):
        self.scale = 2


def test_a_module_may_fuse_itself_and_may_stand_in_two_places():
    own, conv = Own(), lz.create_layer("repvgg_conv", dim=3)
    fused = check(nn.Sequential(own, conv, own, conv), image(), 0)
    assert type(fused[0].scale) is int and type(own.scale) is float and fused[0] is fused[2] and fused[1] is fused[3]


@pytest.mark.parametrize("model, shape", [
    (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), (5, 3)),
    (nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4, affine=False)), (5, 3)),
    (nn.Sequential(nn.Conv1d(3, 4, 3, bias=False), nn.BatchNorm1d(4)), (2, 3, 9)),
    (nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=2, padding_mode="reflect"), nn.BatchNorm2d(4)), (2, 4, 5, 6)),
    (nn.Sequential(nn.Conv3d(3, 4, (1, 2, 3)), nn.BatchNorm3d(4)), (2, 3, 4, 4, 4)),
], ids=["linear", "linear_plain", "conv1d", "grouped", "conv3d"])
def test_kinds(model, shape):
    check(model, image(*shape), 0)


class Held(nn.Module):
    """A convolution and a batch norm under a `forward` that is given."""

    def __init__(self, forward):
        super().__init__()
        self.conv, self.norm, self.way = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), forward

    def forward(self, x):
        return self.way(self, x)


class WithSwitch(Held):
    def forward(self, x, plain=False):
        return self.conv(x) if plain else self.norm(self.conv(x))


@pytest.mark.parametrize("forward, left", [
    (lambda s, x: F.relu(s.norm(s.conv(x))), 0),
    (lambda s, x: s.norm(s.conv(x)[:, :, : x.shape[2]].flip(1)), 1),
    (lambda s, x: s.norm(y := s.conv(x)) + y, 1),
    (lambda s, x: s.norm(s.conv(s.conv(x))), 1),
    (lambda s, x: s.norm(s.norm(s.conv(x))), 1),
    (lambda s, x: s.norm(s.conv(x)) + s.conv.weight.sum(), 1),
    (lambda s, x: s.norm(s.conv(x)) if x.mean() < 9 else s.conv(x), 1),
    (lambda s, x: s.conv(s.norm(x)), 1),
], ids=["direct", "between", "read", "conv_twice", "norm_twice", "weight_read", "branch", "before"])
def test_only_what_follows_directly_and_alone(forward, left):
    check(Held(forward), image(), left)


def hooked():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    model[0].register_forward_hook(lambda module, args, y: y + 1)
    return model


def shared():
    conv = nn.Conv2d(3, 3, 1)
    return nn.Sequential(nn.Sequential(conv, nn.BatchNorm2d(3)), conv)


class Standardised(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight / self.weight.norm(), self.bias)


@pytest.mark.parametrize("make", [
    hooked, shared, lambda: WithSwitch(None), lambda: nn.Sequential(Standardised(3, 3, 1), nn.BatchNorm2d(3)),
    lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 1)), nn.BatchNorm2d(3)),
    lambda: nn.Sequential(nn.ConvTranspose2d(3, 3, 1), nn.BatchNorm2d(3)),
], ids=["hooked", "shared", "two_arguments", "subclass", "parametrised", "transposed"])
def test_what_is_left_alone(make):
    check(make(), image(), 1)


def test_a_norm_of_the_batch_itself_stays():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False))
    check(model, image(), 1)


def test_training_is_refused():
    message = "model to fuse: got a model in training mode, expected one in eval mode. Call model.eval() first."
    with pytest.raises(ValueError, match=re.escape(message)):
        fuse(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))
