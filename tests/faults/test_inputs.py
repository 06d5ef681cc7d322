"""What a model is given in place of images: refused with what it got and what it takes, or classified."""

import re

import pytest
import torch

import layerzoo as lz

SIDE, DO = 32, "Check the number of channels and the layout."
TYPES = "Convert images by .to(), and integers to normalised values before; or the model."
GOOD = {
    "images": (2, 3, SIDE, SIDE), "one": (1, 3, SIDE, SIDE), "none": (0, 3, SIDE, SIDE), "larger": (2, 3, SIDE + 16, SIDE + 16),
    "odd": (2, 3, SIDE - 3, SIDE + 5), "a pixel": (2, 3, 1, 1)}
SHAPES = {
    "grey": (2, 1, SIDE, SIDE), "four channels": (2, 4, SIDE, SIDE), "channels last": (2, SIDE, SIDE, 3), "no batch": (3, SIDE, SIDE),
    "video": (1, 2, 3, SIDE, SIDE), "no rows": (2, 3, 0, SIDE), "no columns": (2, 3, SIDE, 0)}
DTYPES = (torch.uint8, torch.int64, torch.bool, torch.float64, torch.float16, torch.bfloat16)
FEW = ("vit_tiny", "resnet18", "swin_tiny")


@pytest.mark.parametrize("name", [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in lz.list_models()])
def test_any_input_is_classified_or_refused(name):
    torch.manual_seed(0)
    model = lz.create_model(name, img_size=SIDE, num_classes=5).eval()
    what = f"input of {type(model).__name__}: got "

    def refuses(x, message):
        with pytest.raises(ValueError, match=f"^{re.escape(what + message)}$"), torch.inference_mode():
            model(x)

    for case, shape in GOOD.items():
        for form in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(shape).contiguous(memory_format=form)
            with torch.inference_mode():
                y = model(x)
                assert y.shape == (shape[0], 5) and y.isfinite().all(), case
                assert torch.allclose(y[:1], model(x[:1]), atol=1e-4), case
    for shape in SHAPES.values():
        refuses(torch.randn(shape), f"{shape}, expected images (B, 3, H, W). {DO}")
    images = torch.rand(GOOD["images"]) * 2
    for dtype in DTYPES:
        refuses(images.to(dtype), f"images of {dtype}, expected of torch.float32, as its weights. {TYPES}")
    for x in (images.numpy(), [images]):
        refuses(x, f"{type(x).__name__}, expected a tensor of images (B, 3, H, W). Convert it by torch.as_tensor.")
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert model(images.bfloat16()).isfinite().all()
        refuses(images.byte(), f"images of torch.uint8, expected of torch.float32, as its weights. {TYPES}")
    with torch.inference_mode():
        assert model.double()(images.double()).dtype == torch.float64
