"""Published models in their original sizes; `layerzoo.from_timm` fills those that timm has too.

Below 112 pixels their stems take smaller steps, so that the last of four stages still has places to mix.
"""

from __future__ import annotations

from layerzoo.models.presets.base import by_size, overlapping, patches, preset
from layerzoo.models.presets.micro import mixer_tiny, resnet18, vit_tiny

_WIDTHS = [96, 192, 384, 768]
_EPS = {"name": "layer", "eps": 1e-6}


@preset
def resnet34(img_size: int) -> dict:
    """ResNet-34 (arXiv 1512.03385): 21.8 M parameters."""
    return resnet18(img_size) | {"depths": [3, 4, 6, 3]}


@preset
def resnet50(img_size: int) -> dict:
    """ResNet-50 (arXiv 1512.03385), stride in the 3x3 convolutions: 25.6 M parameters."""
    wide = {"dims": [256, 512, 1024, 2048], "layer": "bottleneck"}
    return resnet34(img_size) | wide | {"stem": resnet18(img_size)["stem"] | {"width": 64}}


@preset
def deit_tiny(img_size: int) -> dict:
    """DeiT-Ti (arXiv 2012.12877), which is ViT-Ti with its class token: 5.7 M parameters."""
    return vit_tiny(img_size) | {"num_prefix": 1, "head": {"pool": "first", "norm": _EPS}, "block": {"num_heads": 3, "norm": _EPS}}


@preset
def cait_xxs24(img_size: int) -> dict:
    """CaiT-XXS24 (arXiv 2103.17239), heads that talk and a class token that comes in last: 12.0 M parameters."""
    layer = {"name": "mhsa", "talking_heads": "biased"}
    return vit_tiny(img_size) | {
        "depth": 24, "layer": layer, "block": {"num_heads": 4, "norm": _EPS, "layer_scale": 1e-5},
        "head": {"norm": "none", "pool": "class", "class_pool": {"num_heads": 4}, "pooled_norm": _EPS}}


@preset
def xcit_nano_12_p16(img_size: int) -> dict:
    """XCiT-N12/16 (arXiv 2106.09681), each of its blocks as two here: 3.1 M parameters."""
    return {
        "model": "isotropic", "dim": 128, "depth": 24, "layer": ["xcit", "local_patch_interaction"], "ffn": ["none", "mlp"], "position": "fourier2d",
        "stem": {"name": "overlap", "stride": by_size(img_size, 4, 8, 16), "act_last": False, "proj": False},
        "block": {"num_heads": 4, "norm": _EPS, "layer_scale": 1.0},
        "head": {"norm": "none", "pool": "class", "class_pool": {"kind": "xcit", "num_heads": 4, "layer_scale": 1.0}, "pooled_norm": _EPS}}


@preset
def mixer_s16(img_size: int) -> dict:
    """MLP-Mixer S/16 (arXiv 2105.01601): 18.5 M parameters."""
    return mixer_tiny(img_size) | {"dim": 512, "depth": 8, "block": {"norm": _EPS}, "head": {"norm": _EPS}}


@preset
def convnext_tiny(img_size: int) -> dict:
    """ConvNeXt-T (arXiv 2201.03545): 28.6 M parameters."""
    return {
        "model": "pyramid", "dims": _WIDTHS, "depths": [3, 3, 9, 3], "layer": {"name": "convnext", "norm": _EPS},
        "downsample": {"name": "conv_stride", "kernel_size": 2, "pre_norm": _EPS, "norm": "none"}, "stem": patches(img_size, _EPS),
        "head": {"norm": "none", "pooled_norm": _EPS}, "block": {"norm": _EPS}}


@preset
def inception_next_tiny(img_size: int) -> dict:
    """InceptionNeXt-T (arXiv 2303.16900): 28.1 M parameters."""
    unit = {"name": "convnext", "layer": "inception_dw", "norm": "batch"}
    return {
        "model": "pyramid", "dims": _WIDTHS, "depths": [3, 3, 9, 3], "layer": [unit, unit, unit, unit | {"mlp_ratio": 3}],
        "downsample": {"name": "conv_stride", "kernel_size": 2, "pre_norm": "batch", "norm": "none"}, "stem": patches(img_size, "batch"),
        "head": {"norm": "none", "hidden_dim": 2304}, "block": {"norm": "batch"}}


@preset
def edgenext_xx_small(img_size: int) -> dict:
    """EdgeNeXt-XXS (arXiv 2206.10589), the layer scale of its attention folded into this: 1.3 M parameters."""
    stages = []
    for kernel_size, depth, num_scales in ((3, 2, None), (5, 2, 2), (7, 6, 3), (9, 2, 4)):
        unit = {"name": "convnext", "norm": _EPS}
        stages.append([unit | {"kernel_size": kernel_size}] * depth)
        if num_scales:
            layer = {"name": "edgenext", "num_scales": num_scales, "num_heads": 4, "fourier": num_scales == 2}
            stages[-1] = stages[-1][1:] + [unit | {"layer": layer}]
    return convnext_tiny(img_size) | {"dims": [24, 48, 88, 168], "depths": [2, 2, 6, 2], "layer": stages}


@preset
def poolformer_s12(img_size: int) -> dict:
    """PoolFormer-S12 (arXiv 2111.11418): 11.9 M parameters."""
    return {
        "model": "pyramid", "dims": [64, 128, 320, 512], "depths": [2, 2, 6, 2], "layer": "pooling",
        "downsample": {"name": "conv_stride", "norm": "none"}, "stem": overlapping(img_size, False, 2),
        "head": {"norm": "none", "pooled_norm": _EPS}, "block": {"norm": "group", "layer_scale": 1e-5}}


@preset
def focalnet_tiny_srf(img_size: int) -> dict:
    """FocalNet-T with two focal levels (arXiv 2203.11926): 28.4 M parameters."""
    return {
        "model": "pyramid", "dims": _WIDTHS, "depths": [2, 2, 6, 2], "layer": "focal_modulation",
        "downsample": {"name": "conv_stride", "kernel_size": 2}, "stem": patches(img_size)}


@preset
def swin_tiny(img_size: int) -> dict:
    """Swin-T (arXiv 2103.14030), with windows of 4 pixels below 112: 28.3 M parameters."""
    pair = [{"name": "window_attention", "window_size": by_size(img_size, 4, 4, 7), "shift": shift} for shift in (False, True)]
    return {
        "model": "pyramid", "dims": _WIDTHS, "depths": [2, 2, 6, 2], "layer": [pair] * 4, "downsample": "patch_merge", "stem": patches(img_size)}


@preset
def swinv2_tiny(img_size: int) -> dict:
    """Swin V2-T with windows of 8 pixels (arXiv 2111.09883), of 4 below 112: 28.3 M parameters."""
    pair = [{"name": "swin_v2_attention", "window_size": by_size(img_size, 4, 4, 8), "shift": shift} for shift in (False, True)]
    return swin_tiny(img_size) | {
        "layer": [pair] * 4, "downsample": {"name": "patch_merge", "norm_last": True}, "block": {"post_norm": "branch"}}


@preset
def pvt_v2_b0(img_size: int) -> dict:
    """PVT v2-B0 (arXiv 2106.13797): 3.7 M parameters."""
    reduced = [{"name": "spatial_reduction", "reduction": r, "num_heads": h} for r, h in ((8, 1), (4, 2), (2, 5), (1, 8))]
    return {
        "model": "pyramid", "dims": [32, 64, 160, 256], "depths": [2, 2, 2, 2], "layer": reduced,
        "ffn": [{"name": "conv_ffn", "mlp_ratio": ratio} for ratio in (8, 8, 4, 4)], "stem": overlapping(img_size, "layer", 3),
        "downsample": {"name": "conv_stride", "pre_norm": _EPS}, "head": {"norm": _EPS}, "block": {"norm": _EPS}}


@preset
def van_b0(img_size: int) -> dict:
    """VAN-B0 (arXiv 2202.09741), without the second residual around its attention that its code has: 4.1 M parameters."""
    return {
        "model": "pyramid", "dims": [32, 64, 160, 256], "depths": [3, 3, 5, 2], "layer": "large_kernel_attention",
        "ffn": [{"name": "conv_ffn", "mlp_ratio": ratio} for ratio in (8, 8, 4, 4)], "stem": overlapping(img_size, "batch", 3),
        "downsample": {"name": "conv_stride", "pre_norm": _EPS, "norm": "batch"}, "head": {"norm": _EPS},
        "block": {"norm": "batch", "layer_scale": 1e-2}}


@preset
def twins_svt_small(img_size: int) -> dict:
    """Twins-SVT-S (arXiv 2104.13840), with windows of 4 pixels below 112: 24.1 M parameters."""
    window = {"name": "twins", "kind": "local", "window_size": by_size(img_size, 4, 4, 7)}
    pairs = [[window, {"name": "twins", "kind": "global", "reduction": reduction}] for reduction in (8, 4, 2, 1)]
    return {
        "model": "pyramid", "dims": [64, 128, 256, 512], "depths": [2, 2, 10, 4], "layer": pairs,
        "position": {"name": "conditional", "after": "block"},
        "downsample": {"name": "conv_stride", "kernel_size": 2}, "stem": patches(img_size), "head": {"norm": _EPS},
        "block": {"norm": _EPS}}


@preset
def gmlp_s16(img_size: int) -> dict:
    """gMLP-S (arXiv 2105.08050): 19.4 M parameters."""
    return mixer_s16(img_size) | {"dim": 256, "depth": 30, "layer": "gmlp", "ffn": "none"}


@preset
def efficientformer_l1(img_size: int) -> dict:
    """EfficientFormer-L1 (arXiv 2206.01191), attention in the last block, with the mean of its two heads: 11.8 M parameters."""
    attention = {"name": "efficientformer", "variant": "v1", "num_heads": 8, "block": {"norm": "layer", "ffn": "mlp"}}
    return {
        "model": "pyramid", "dims": [48, 96, 224, 448], "depths": [3, 2, 6, 4], "layer": ["pooling"] * 3 + [["pooling"] * 3 + [attention]],
        "ffn": {"name": "mlp", "norm": "batch"}, "downsample": {"name": "conv_stride", "norm": "batch"},
        "stem": {"name": "overlap", "stride": by_size(img_size, 2, 2, 4), "act": "relu", "proj": False},
        "block": {"norm": "none", "layer_scale": 1e-5}}


@preset
def levit_128s(img_size: int) -> dict:
    """LeViT-128S (arXiv 2104.01136), batch norm at the end of each branch and in the head, with the mean of its two heads: 7.4 M parameters."""
    return {
        "model": "pyramid", "dims": [128, 256, 384], "depths": [2, 3, 4], "layer": [{"name": "levit", "num_heads": heads} for heads in (4, 6, 8)],
        "ffn": {"name": "mlp", "mlp_ratio": 2, "act": "hardswish"}, "downsample": "shrinking_attention",
        "stem": {"name": "overlap", "stride": by_size(img_size, 4, 8, 16), "act": "hardswish", "act_last": False, "proj": False},
        "head": {"norm": "none", "pooled_norm": "batch"}, "block": {"norm": "batch", "post_norm": "branch"}}


@preset
def coatnet_0(img_size: int) -> dict:
    """CoAtNet-0 (arXiv 2106.04803), the first block of a stage of attention being its downsample: 25.0 M parameters.

    As timm has it: shortcuts take means where the paper takes the largest values, and the head has a hidden layer.
    """
    unit, pooled = {"name": "mbconv", "pool": "mean"}, {"name": "pooled_attention", "pool": "mean", "norm": _EPS}
    return {
        "model": "pyramid", "dims": [64, *_WIDTHS], "depths": [0, 2, 3, 4, 1], "layer": ["identity", unit, unit] + ["coatnet_attention"] * 2,
        "downsample": ["conv_stride"] * 3 + [pooled] * 2, "stem": {"name": "overlap", "stride": by_size(img_size, 1, 1, 2)}, "block": {"norm": _EPS},
        "head": {"norm": "none", "pooled_norm": _EPS, "hidden_dim": 768, "hidden_act": "tanh"}}


@preset
def maxvit_tiny(img_size: int) -> dict:
    """MaxViT-T (arXiv 2204.01697), each of its blocks as three here, with windows of 4 places below 112 pixels: 30.9 M parameters."""
    traits = {"act": "gelu_tanh", "eps": 1e-3, "same": True}
    size = {"window_size": by_size(img_size, 4, 4, 7)}
    block = [{"name": "mbconv", "pool": "mean"} | traits, {"name": "window_attention"} | size, {"name": "grid_attention"} | size]
    return {
        "model": "pyramid", "dims": [64, 64, 128, 256, 512], "depths": [0, 6, 6, 15, 6], "layer": ["identity"] + [block] * 4,
        "ffn": {"name": "mlp", "act": "gelu_tanh"}, "stem": {"name": "overlap", "stride": by_size(img_size, 1, 1, 2)} | traits,
        "head": {"norm": "none", "pooled_norm": "layer", "hidden_dim": 512, "hidden_act": "tanh"}}


@preset
def mvitv2_tiny(img_size: int) -> dict:
    """MViTv2-T (arXiv 2112.01526), the first block of a stage being its downsample: 24.2 M parameters."""
    patch = by_size(img_size, 2, 2, 4)
    units = [{"stride": stride, "num_heads": heads, "reach": max(1, -(-img_size // (patch * heads)) - 1)}
             for stride, heads in ((4, 1), (2, 2), (1, 4), (1, 8))]  # sides halve where heads double
    reaches = [units[i]["reach"] for i in (0, 1, 1, 2)]  # of the finer of two grids, that of queries or that of keys
    return {
        "model": "pyramid", "dims": _WIDTHS, "depths": [1, 1, 4, 1], "layer": [{"name": "multi_scale"} | unit for unit in units],
        "downsample": [{"name": "multi_scale_pooling", "norm": _EPS} | unit | {"reach": reach} for unit, reach in zip(units, reaches)],
        "stem": overlapping(img_size, False, 3), "block": {"norm": _EPS}, "head": {"norm": _EPS}}


def _mobile(img_size: int, stem_width: int, expansion: int, layer: dict) -> dict:
    """Inverted residuals, of which the first of a stage strides, and after those of the last three stages a layer that is a block of its own."""
    unit, alone = {"name": "inverted_residual", "expansion": expansion}, {"norm": "none", "ffn": "none", "residual": False}
    stem = {"name": "conv", "stride": by_size(img_size, 1, 1, 2), "width": stem_width, "act": "silu"}
    pairs = [[unit, layer | {"depth": depth, "block": alone}] for depth in (2, 4, 3)]
    return {"model": "pyramid", "layer": [unit, unit, *pairs], "stem": stem}


@preset
def mobilevit_s(img_size: int) -> dict:
    """MobileViT-S (arXiv 2110.02178), whose MobileViT blocks have biases for batch norms: 5.6 M parameters.

    As published where the sides are multiples of 64 pixels: other maps are resized there to whole patches, and padded here.
    """
    return _mobile(img_size, 16, 4, {"name": "mobilevit", "num_heads": 4}) | {
        "dims": [32, 64, 96, 128, 160], "depths": [1, 3, 2, 2, 2], "head": {"norm": "batch", "num_features": 640}}


@preset
def mobilevitv2_100(img_size: int) -> dict:
    """MobileViTv2-1.0 (arXiv 2206.02680), whose MobileViT blocks have biases for batch norms: 4.9 M parameters.

    As published where the sides are multiples of 64 pixels: other maps are resized there to whole patches, and padded here.
    """
    return _mobile(img_size, 32, 2, {"name": "mobilevit_v2"}) | {
        "dims": [64, 128, 256, 384, 512], "depths": [1, 2, 2, 2, 2], "head": {"norm": "none"}}
