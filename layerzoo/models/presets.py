"""Presets: the arguments of known models, chosen by image size. Imports nothing, so that listing is quick."""

from __future__ import annotations

from collections.abc import Callable

PRESETS: dict[str, Callable[[int], dict]] = {}


def list_models() -> list[str]:
    """Names of the presets, sorted."""
    return sorted(PRESETS)


def _preset(make: Callable[[int], dict]) -> Callable[[int], dict]:
    PRESETS[make.__name__] = make
    return make


def _by_size(img_size: int, small: object, middle: object, large: object) -> object:
    """One of three settings: for CIFAR's 32 pixels, for 64, for ImageNet's 224."""
    return small if img_size < 48 else middle if img_size < 112 else large


@_preset
def vit_tiny(img_size: int) -> dict:
    """ViT-Ti (arXiv 2012.12877) with mean pooling: 5.4 M parameters."""
    patch = _by_size(img_size, 4, 8, 16)
    return {"model": "isotropic", "dim": 192, "depth": 12, "stem": {"name": "patchify", "patch_size": patch}, "layer": "mhsa", "block": {"num_heads": 3}}


@_preset
def attention_cnn(img_size: int) -> dict:
    """The model of "On the Relationship between Self-Attention and Convolutional Layers" (arXiv 1911.03584): six blocks of nine wide heads, 12.1 M."""
    return {
        "model": "isotropic", "dim": 400, "depth": 6, "stem": {"name": "patchify", "patch_size": _by_size(img_size, 2, 4, 14)},
        "layer": "quadratic_attention", "ffn": {"name": "mlp", "mlp_ratio": 1.28}, "position": "none", "head": {"norm": "none"},
        "block": {"num_heads": 9, "post_norm": True, "dropout": 0.1}}


@_preset
def cct_7(img_size: int) -> dict:
    """CCT-7 (arXiv 2104.05704): convolutional tokenizer (one 3x3 layer at 32 pixels), seven blocks, sequence pooling."""
    stem = _by_size(img_size, {"num_convs": 1}, {"num_convs": 2}, {"num_convs": 2, "conv_stride": 2})
    return {
        "model": "isotropic", "dim": 256, "depth": 7, "stem": {"name": "conv_pool", **stem}, "layer": {"name": "mhsa", "qkv_bias": False},
        "ffn": {"name": "mlp", "mlp_ratio": 2}, "block": {"num_heads": 4, "drop_path": 0.1}, "head": {"pool": "sequence"}}


@_preset
def mixer_tiny(img_size: int) -> dict:
    """MLP-Mixer (arXiv 2105.01601) at the width and depth of ViT-Ti."""
    patch = _by_size(img_size, 4, 8, 16)
    return {
        "model": "isotropic", "dim": 192, "depth": 12, "stem": {"name": "patchify", "patch_size": patch}, "layer": "mlp_mixer", "position": "none"}


@_preset
def resnet18(img_size: int) -> dict:
    """ResNet-18 (arXiv 1512.03385); below 112 pixels with the 3x3 stem and no pooling, as customary on CIFAR."""
    small = {"name": "conv"}
    stem = _by_size(img_size, small, {"name": "conv", "stride": 2}, {"name": "conv", "kernel_size": 7, "stride": 2, "pool": True})
    return {"model": "pyramid", "dims": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer": "basic", "stem": stem, "head": {"norm": "none"}}


@_preset
def speednet(img_size: int) -> dict:
    """A small convolutional net in the manner of airbench (arXiv 2404.00498): frozen whitening stem, no residuals."""
    return {
        "model": "pyramid", "dims": [24, 16, 64, 64], "depths": [0, 1, 1, 1], "layer": "airbench", "stem": {"name": "whitening"},
        "head": {"pool": "max", "norm": "none", "scale": 1 / 9}}


@_preset
def convnext_micro(img_size: int) -> dict:
    """A small ConvNeXt (arXiv 2201.03545)."""
    patch = _by_size(img_size, 2, 2, 4)
    return {
        "model": "pyramid", "dims": [32, 64, 128, 256], "depths": [1, 1, 3, 1], "layer": "convnext", "downsample": "patch_merge",
        "stem": {"name": "patchify", "patch_size": patch, "norm": True}}


@_preset
def poolformer_micro(img_size: int) -> dict:
    """A small PoolFormer (arXiv 2111.11418): average pooling as the layer, group norm."""
    stride = _by_size(img_size, 2, 2, 4)
    return {
        "model": "pyramid", "dims": [32, 64, 128, 256], "depths": [1, 1, 3, 1], "layer": "pooling", "stem": {"name": "overlap", "stride": stride},
        "block": {"norm": "group", "layer_scale": 1e-2}}


@_preset
def swin_micro(img_size: int) -> dict:
    """A small Swin (arXiv 2103.14030): plain and shifted windows in turn, of 4 pixels below 112 and of 7 above."""
    patch, window = _by_size(img_size, 2, 2, 4), _by_size(img_size, 4, 4, 7)
    pair = [{"name": "window_attention", "window_size": window, "shift": shift} for shift in (False, True)]
    return {
        "model": "pyramid", "dims": [32, 64, 128, 256], "depths": [2, 2, 4, 2], "layer": [pair] * 4, "downsample": "patch_merge",
        "stem": {"name": "patchify", "patch_size": patch, "norm": True}, "block": {"drop_path": 0.1}}


@_preset
def coatnet_micro(img_size: int) -> dict:
    """A small CoAtNet (arXiv 2106.04803): convolution, attention, attention; 0.6 M parameters."""
    stride = _by_size(img_size, 2, 4, 8)
    return {
        "model": "pyramid", "dims": [32, 64, 128], "depths": [2, 2, 2], "layer": ["mbconv", "coatnet_attention", "coatnet_attention"],
        "stem": {"name": "overlap", "stride": stride}}


@_preset
def hybrid_nano(img_size: int) -> dict:
    """The quickstart's model: two convolutional blocks, then two of attention; 0.1 M parameters."""
    stride = _by_size(img_size, 2, 4, 8)
    return {
        "model": "pyramid", "dims": [32, 64], "depths": [2, 2], "layer": ["depthwise_conv", "mhsa"], "position": "conditional",
        "ffn": {"name": "mlp", "mlp_ratio": 2}, "stem": {"name": "overlap", "stride": stride}}
