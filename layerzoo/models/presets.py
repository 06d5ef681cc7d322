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


@_preset
def maxvit_micro(img_size: int) -> dict:
    """A small pyramid of MaxViT's layer (arXiv 2204.01697)."""
    layer = {"name": "maxvit", "window_size": _by_size(img_size, 4, 4, 7)}
    return {
        "model": "pyramid", "dims": [32, 64, 128], "depths": [1, 2, 2], "layer": layer,
        "stem": {"name": "overlap", "stride": _by_size(img_size, 2, 4, 8)}}


@_preset
def mobilevit_micro(img_size: int) -> dict:
    """A small pyramid of mobile convolutions, then MobileViT's layer (arXiv 2110.02178), which is a block of its own."""
    unit = {"name": "mobilevit", "block": {"norm": "none", "ffn": "none"}}
    return {
        "model": "pyramid", "dims": [32, 64, 96], "depths": [1, 2, 2], "layer": ["mbconv", ["mbconv", unit], ["mbconv", unit]],
        "stem": {"name": "overlap", "stride": _by_size(img_size, 2, 4, 8)}}


@_preset
def levit_micro(img_size: int) -> dict:
    """A small pyramid of LeViT's attention (arXiv 2104.01136) after its convolutional stem; strided convolutions between the stages."""
    return {
        "model": "pyramid", "dims": [64, 96, 128], "depths": [2, 2, 2], "layer": "levit", "ffn": {"name": "mlp", "mlp_ratio": 2, "norm": "batch"},
        "stem": {"name": "overlap", "stride": _by_size(img_size, 4, 8, 16), "proj": False}, "block": {"norm": "batch"},
        "downsample": {"name": "conv_stride", "norm": "batch"}, "head": {"norm": "batch"}}


@_preset
def van_micro(img_size: int) -> dict:
    """A small VAN (arXiv 2202.09741): large-kernel attention and the convolutional feed-forward."""
    return {
        "model": "pyramid", "dims": [32, 64, 128, 256], "depths": [1, 1, 3, 1], "layer": "large_kernel_attention", "ffn": "conv_ffn",
        "stem": _overlapping(img_size, "batch", 3), "downsample": {"name": "conv_stride", "norm": "batch"},
        "block": {"norm": "batch", "layer_scale": 1e-2}}


@_preset
def mvitv2_micro(img_size: int) -> dict:
    """A small MViTv2 (arXiv 2112.01526), whose maps are halved between its stages instead of in their first attention."""
    return {
        "model": "pyramid", "dims": [32, 64, 128, 256], "depths": [1, 1, 3, 1], "layer": [{"name": "multi_scale", "stride": s} for s in (8, 4, 2, 1)],
        "stem": _overlapping(img_size, False, 3)}


@_preset
def xcit_micro(img_size: int) -> dict:
    """A small model of XCiT's attention (arXiv 2106.09681) with the convolutional feed-forward in place of its local interaction."""
    return {
        "model": "isotropic", "dim": 128, "depth": 6, "layer": "xcit", "ffn": "conv_ffn", "position": "sincos2d",
        "stem": {"name": "overlap", "stride": _by_size(img_size, 4, 8, 16)}, "block": {"num_heads": 4, "layer_scale": 1.0}}


@_preset
def cait_micro(img_size: int) -> dict:
    """A small model in the manner of CaiT (arXiv 2103.17239): self-attention, then two blocks of class attention; layer scale throughout."""
    return vit_tiny(img_size) | {
        "dim": 128, "depth": 8, "layer": ["mhsa"] * 6 + ["class_attention"] * 2, "block": {"num_heads": 4, "layer_scale": 1e-1}}


# Published models. Below 112 pixels their stems take smaller steps, so that the last of four stages still has places to mix.

_WIDTHS = [96, 192, 384, 768]
_EPS = {"name": "layer", "eps": 1e-6}


def _patches(img_size: int, norm: str | dict | bool = "layer") -> dict:
    """A stem of patches of 4 pixels, of 2 for small images."""
    return {"name": "patchify", "patch_size": _by_size(img_size, 2, 2, 4), "norm": norm}


def _overlapping(img_size: int, norm: str | bool, padding: int) -> dict:
    """A stem of 7x7 pixels at every fourth, of 3x3 at every other for small images."""
    small = {"name": "patchify", "patch_size": 2, "kernel_size": 3, "padding": 1, "norm": norm}
    return _by_size(img_size, small, small, small | {"patch_size": 4, "kernel_size": 7, "padding": padding})


@_preset
def resnet34(img_size: int) -> dict:
    """ResNet-34 (arXiv 1512.03385): 21.8 M parameters."""
    return resnet18(img_size) | {"depths": [3, 4, 6, 3]}


@_preset
def resnet50(img_size: int) -> dict:
    """ResNet-50 (arXiv 1512.03385), stride in the 3x3 convolutions: 25.6 M parameters."""
    wide = {"dims": [256, 512, 1024, 2048], "layer": "bottleneck"}
    return resnet34(img_size) | wide | {"stem": resnet18(img_size)["stem"] | {"width": 64}}


@_preset
def deit_tiny(img_size: int) -> dict:
    """DeiT-Ti (arXiv 2012.12877), which is ViT-Ti with its class token: 5.7 M parameters."""
    return vit_tiny(img_size) | {"num_prefix": 1, "head": {"pool": "first", "norm": _EPS}, "block": {"num_heads": 3, "norm": _EPS}}


@_preset
def mixer_s16(img_size: int) -> dict:
    """MLP-Mixer S/16 (arXiv 2105.01601): 18.5 M parameters."""
    return mixer_tiny(img_size) | {"dim": 512, "depth": 8, "block": {"norm": _EPS}, "head": {"norm": _EPS}}


@_preset
def convnext_tiny(img_size: int) -> dict:
    """ConvNeXt-T (arXiv 2201.03545): 28.6 M parameters."""
    return {
        "model": "pyramid", "dims": _WIDTHS, "depths": [3, 3, 9, 3], "layer": {"name": "convnext", "norm": _EPS},
        "downsample": {"name": "conv_stride", "kernel_size": 2, "pre_norm": _EPS, "norm": "none"}, "stem": _patches(img_size, _EPS),
        "head": {"norm": "none", "pooled_norm": _EPS}, "block": {"norm": _EPS}}


@_preset
def inception_next_tiny(img_size: int) -> dict:
    """InceptionNeXt-T (arXiv 2303.16900): 28.1 M parameters."""
    unit = {"name": "convnext", "layer": "inception_dw", "norm": "batch"}
    return {
        "model": "pyramid", "dims": _WIDTHS, "depths": [3, 3, 9, 3], "layer": [unit, unit, unit, unit | {"mlp_ratio": 3}],
        "downsample": {"name": "conv_stride", "kernel_size": 2, "pre_norm": "batch", "norm": "none"}, "stem": _patches(img_size, "batch"),
        "head": {"norm": "none", "hidden_dim": 2304}, "block": {"norm": "batch"}}


@_preset
def poolformer_s12(img_size: int) -> dict:
    """PoolFormer-S12 (arXiv 2111.11418): 11.9 M parameters."""
    return {
        "model": "pyramid", "dims": [64, 128, 320, 512], "depths": [2, 2, 6, 2], "layer": "pooling",
        "downsample": {"name": "conv_stride", "norm": "none"}, "stem": _overlapping(img_size, False, 2),
        "head": {"norm": "none", "pooled_norm": _EPS}, "block": {"norm": "group", "layer_scale": 1e-5}}


@_preset
def focalnet_tiny_srf(img_size: int) -> dict:
    """FocalNet-T with two focal levels (arXiv 2203.11926): 28.4 M parameters."""
    return {
        "model": "pyramid", "dims": _WIDTHS, "depths": [2, 2, 6, 2], "layer": "focal_modulation",
        "downsample": {"name": "conv_stride", "kernel_size": 2}, "stem": _patches(img_size)}


@_preset
def swin_tiny(img_size: int) -> dict:
    """Swin-T (arXiv 2103.14030), with windows of 4 pixels below 112: 28.3 M parameters."""
    pair = [{"name": "window_attention", "window_size": _by_size(img_size, 4, 4, 7), "shift": shift} for shift in (False, True)]
    return {
        "model": "pyramid", "dims": _WIDTHS, "depths": [2, 2, 6, 2], "layer": [pair] * 4, "downsample": "patch_merge", "stem": _patches(img_size)}


@_preset
def swinv2_tiny(img_size: int) -> dict:
    """Swin V2-T with windows of 8 pixels (arXiv 2111.09883), of 4 below 112: 28.3 M parameters."""
    pair = [{"name": "swin_v2_attention", "window_size": _by_size(img_size, 4, 4, 8), "shift": shift} for shift in (False, True)]
    return swin_tiny(img_size) | {
        "layer": [pair] * 4, "downsample": {"name": "patch_merge", "norm_last": True}, "block": {"post_norm": "branch"}}


@_preset
def pvt_v2_b0(img_size: int) -> dict:
    """PVT v2-B0 (arXiv 2106.13797): 3.7 M parameters."""
    reduced = [{"name": "spatial_reduction", "reduction": r, "num_heads": h} for r, h in ((8, 1), (4, 2), (2, 5), (1, 8))]
    return {
        "model": "pyramid", "dims": [32, 64, 160, 256], "depths": [2, 2, 2, 2], "layer": reduced,
        "ffn": [{"name": "conv_ffn", "mlp_ratio": ratio} for ratio in (8, 8, 4, 4)], "stem": _overlapping(img_size, "layer", 3),
        "downsample": {"name": "conv_stride", "pre_norm": _EPS}, "head": {"norm": _EPS}, "block": {"norm": _EPS}}


@_preset
def twins_svt_small(img_size: int) -> dict:
    """Twins-SVT-S (arXiv 2104.13840), with windows of 4 pixels below 112: 24.1 M parameters."""
    window = {"name": "twins", "kind": "local", "window_size": _by_size(img_size, 4, 4, 7)}
    pairs = [[window, {"name": "twins", "kind": "global", "reduction": reduction}] for reduction in (8, 4, 2, 1)]
    return {
        "model": "pyramid", "dims": [64, 128, 256, 512], "depths": [2, 2, 10, 4], "layer": pairs,
        "position": {"name": "conditional", "after": "block"},
        "downsample": {"name": "conv_stride", "kernel_size": 2}, "stem": _patches(img_size), "head": {"norm": _EPS},
        "block": {"norm": _EPS}}


@_preset
def gmlp_s16(img_size: int) -> dict:
    """gMLP-S (arXiv 2105.08050): 19.4 M parameters."""
    return mixer_s16(img_size) | {"dim": 256, "depth": 30, "layer": "gmlp", "ffn": "none"}


@_preset
def efficientformer_l1(img_size: int) -> dict:
    """EfficientFormer-L1 (arXiv 2206.01191), attention in the last block, with the mean of its two heads: 11.8 M parameters."""
    attention = {"name": "efficientformer", "variant": "v1", "num_heads": 8, "block": {"norm": "layer", "ffn": "mlp"}}
    return {
        "model": "pyramid", "dims": [48, 96, 224, 448], "depths": [3, 2, 6, 4], "layer": ["pooling"] * 3 + [["pooling"] * 3 + [attention]],
        "ffn": {"name": "mlp", "norm": "batch"}, "downsample": {"name": "conv_stride", "norm": "batch"},
        "stem": {"name": "overlap", "stride": _by_size(img_size, 2, 2, 4), "act": "relu", "proj": False},
        "block": {"norm": "none", "layer_scale": 1e-5}}
