"""Costs against counts by hand."""

import math

import pytest
import torch
from torch import nn

import layerzoo as lz


def test_convolution():
    c = lz.cost(nn.Conv2d(3, 8, 3, padding=1), (2, 3, 16, 12))
    assert (c.params, c.flops) == (3 * 8 * 9 + 8, 2 * (2 * 16 * 12 * 8) * (3 * 9))
    assert c.activation_bytes == 4 * 2 * 16 * 12 * 8


@pytest.mark.parametrize("normalize", ["softmax", "relu", "sigmoid"])
def test_attention_counts_projections_scores_and_mixing(normalize):
    n, dim = 12 * 10, 24
    layer = lz.create_layer("mhsa", dim=dim, num_heads=3, normalize=normalize)
    assert lz.cost(layer, (1, dim, 12, 10)).flops == 2 * (4 * n * dim * dim + 2 * n * n * dim)


def test_fused_attention_makes_no_weights():
    n, h = 32 * 32, 4
    fused, made = (lz.cost(lz.create_layer("mhsa", dim=64, num_heads=h, normalize=f), (1, 64, 32, 32)) for f in ("softmax", "relu"))
    assert fused.activation_bytes < 4 * h * n * n < made.activation_bytes


@pytest.mark.parametrize("pool, outputs, window", [(nn.MaxPool2d(2), 3 * 6 * 5, 4), (nn.AvgPool2d(3, 1), 3 * 10 * 8, 9), (nn.AvgPool2d((1, 5), 1), 3 * 12 * 6, 5)])
def test_pooling(pool, outputs, window):
    assert lz.cost(pool, (1, 3, 12, 10)).flops == outputs * window


class Transform(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def test_fourier_transforms():
    points = 3 * 16 * 8
    assert lz.cost(Transform(torch.fft.fft2), (1, 3, 16, 8)).flops in (int(k * points * math.log2(128)) for k in (2.5, 5))
    both = lz.cost(Transform(lambda x: torch.fft.irfft2(torch.fft.rfft2(x))), (1, 3, 16, 8)).flops
    assert both == 2 * int(2.5 * points * math.log2(128))


def test_recurrence():
    assert lz.cost(nn.LSTM(8, 16, batch_first=True), (1, 5, 8)).flops == 2 * 5 * 4 * (16 * 8 + 16 * 16)


def test_encoder_fast_path_is_not_taken():
    n, d, f = 64, 32, 128
    layer = nn.TransformerEncoderLayer(d, 4, f, batch_first=True)
    assert lz.cost(layer, (1, n, d)).flops == 2 * (4 * n * d * d + 2 * n * n * d + 2 * n * d * f)
    assert layer.training and all(p.device.type == "cpu" for p in layer.parameters())


def test_half_precision_halves_the_bytes():
    layer = nn.Conv2d(3, 8, 1)
    assert lz.cost(layer.bfloat16(), (1, 3, 8, 8), dtype=torch.bfloat16).activation_bytes == 2 * 8 * 64


def test_printed():
    assert str(lz.cost(nn.Conv2d(3, 8, 1), (1, 3, 512, 512))) == "0.000 M parameters, 12.58 MFLOP, 8.00 MiB of activations"


def test_preset_equals_timm():
    timm = pytest.importorskip("timm")
    reference = timm.create_model("vit_tiny_patch16_224", class_token=False, global_pool="avg", num_classes=10)
    ours = lz.create_model("vit_tiny", num_classes=10, img_size=224)
    shape = (1, 3, 224, 224)
    assert (lz.cost(ours, shape).flops, lz.cost(ours, shape).params) == (lz.cost(reference, shape).flops, lz.cost(reference, shape).params)


def test_a_model_on_the_meta_device_costs_the_same():
    with torch.device("meta"):
        model = lz.create_model("hybrid_nano", num_classes=10, img_size=32)
    assert lz.cost(model, (1, 3, 32, 32)) == lz.cost(lz.create_model("hybrid_nano", num_classes=10, img_size=32), (1, 3, 32, 32))
