"""Small models, for CIFAR and quick studies, and those the field starts from."""

from __future__ import annotations

from layerzoo.models.presets.base import by_size, overlapping, preset


@preset
def vit_tiny(img_size: int) -> dict:
    """ViT-Ti (arXiv 2012.12877) with mean pooling: 5.4 M parameters."""
    patch = by_size(img_size, 4, 8, 16)
    return {"model": "isotropic", "dim": 192, "depth": 12, "stem": {"name": "patchify", "patch_size": patch}, "layer": "mhsa", "block": {"num_heads": 3}}


@preset
def attention_cnn(img_size: int) -> dict:
    """The model of "On the Relationship between Self-Attention and Convolutional Layers" (arXiv 1911.03584): six blocks of nine wide heads, 12.1 M."""
    return {
        "model": "isotropic", "dim": 400, "depth": 6, "stem": {"name": "patchify", "patch_size": by_size(img_size, 2, 4, 14)},
        "layer": "quadratic_attention", "ffn": {"name": "mlp", "mlp_ratio": 1.28}, "position": "none", "head": {"norm": "none"},
        "block": {"num_heads": 9, "post_norm": True, "dropout": 0.1}}


@preset
def cct_7(img_size: int) -> dict:
    """CCT-7 (arXiv 2104.05704): convolutional tokenizer (one 3x3 layer at 32 pixels), seven blocks, sequence pooling."""
    stem = by_size(img_size, {"num_convs": 1}, {"num_convs": 2}, {"num_convs": 2, "conv_stride": 2})
    return {
        "model": "isotropic", "dim": 256, "depth": 7, "stem": {"name": "conv_pool", **stem}, "layer": {"name": "mhsa", "qkv_bias": False},
        "ffn": {"name": "mlp", "mlp_ratio": 2}, "block": {"num_heads": 4, "drop_path": 0.1}, "head": {"pool": "sequence"}}


@preset
def mixer_tiny(img_size: int) -> dict:
    """MLP-Mixer (arXiv 2105.01601) at the width and depth of ViT-Ti."""
    patch = by_size(img_size, 4, 8, 16)
    return {
        "model": "isotropic", "dim": 192, "depth": 12, "stem": {"name": "patchify", "patch_size": patch}, "layer": "mlp_mixer", "position": "none"}


@preset
def resnet18(img_size: int) -> dict:
    """ResNet-18 (arXiv 1512.03385); below 112 pixels with the 3x3 stem and no pooling, as customary on CIFAR."""
    small = {"name": "conv"}
    stem = by_size(img_size, small, {"name": "conv", "stride": 2}, {"name": "conv", "kernel_size": 7, "stride": 2, "pool": True})
    return {"model": "pyramid", "dims": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer": "basic", "stem": stem, "head": {"norm": "none"}}


@preset
def speednet(img_size: int) -> dict:
    """A small convolutional net in the manner of airbench (arXiv 2404.00498): frozen whitening stem, no residuals."""
    return {
        "model": "pyramid", "dims": [24, 16, 64, 64], "depths": [0, 1, 1, 1], "layer": "airbench", "stem": {"name": "whitening"},
        "head": {"pool": "max", "norm": "none", "scale": 1 / 9}}


@preset
def convnext_micro(img_size: int) -> dict:
    """A small ConvNeXt (arXiv 2201.03545)."""
    patch = by_size(img_size, 2, 2, 4)
    return {
        "model": "pyramid", "dims": [32, 64, 128, 256], "depths": [1, 1, 3, 1], "layer": "convnext", "downsample": "patch_merge",
        "stem": {"name": "patchify", "patch_size": patch, "norm": True}}


@preset
def poolformer_micro(img_size: int) -> dict:
    """A small PoolFormer (arXiv 2111.11418): average pooling as the layer, group norm."""
    stride = by_size(img_size, 2, 2, 4)
    return {
        "model": "pyramid", "dims": [32, 64, 128, 256], "depths": [1, 1, 3, 1], "layer": "pooling", "stem": {"name": "overlap", "stride": stride},
        "block": {"norm": "group", "layer_scale": 1e-2}}


@preset
def swin_micro(img_size: int) -> dict:
    """A small Swin (arXiv 2103.14030): plain and shifted windows in turn, of 4 pixels below 112 and of 7 above."""
    patch, window = by_size(img_size, 2, 2, 4), by_size(img_size, 4, 4, 7)
    pair = [{"name": "window_attention", "window_size": window, "shift": shift} for shift in (False, True)]
    return {
        "model": "pyramid", "dims": [32, 64, 128, 256], "depths": [2, 2, 4, 2], "layer": [pair] * 4, "downsample": "patch_merge",
        "stem": {"name": "patchify", "patch_size": patch, "norm": True}, "block": {"drop_path": 0.1}}


@preset
def coatnet_micro(img_size: int) -> dict:
    """A small CoAtNet (arXiv 2106.04803): convolution, attention, attention; 0.6 M parameters."""
    stride = by_size(img_size, 2, 4, 8)
    return {
        "model": "pyramid", "dims": [32, 64, 128], "depths": [2, 2, 2], "layer": ["mbconv", "coatnet_attention", "coatnet_attention"],
        "stem": {"name": "overlap", "stride": stride}}


@preset
def hybrid_nano(img_size: int) -> dict:
    """The quickstart's model: two convolutional blocks, then two of attention; 0.1 M parameters."""
    stride = by_size(img_size, 2, 4, 8)
    return {
        "model": "pyramid", "dims": [32, 64], "depths": [2, 2], "layer": ["depthwise_conv", "mhsa"], "position": "conditional",
        "ffn": {"name": "mlp", "mlp_ratio": 2}, "stem": {"name": "overlap", "stride": stride}}


@preset
def maxvit_micro(img_size: int) -> dict:
    """A small pyramid of MaxViT's layer (arXiv 2204.01697)."""
    layer = {"name": "maxvit", "window_size": by_size(img_size, 4, 4, 7)}
    return {
        "model": "pyramid", "dims": [32, 64, 128], "depths": [1, 2, 2], "layer": layer,
        "stem": {"name": "overlap", "stride": by_size(img_size, 2, 4, 8)}}


@preset
def mobilevit_micro(img_size: int) -> dict:
    """A small pyramid of mobile convolutions, then MobileViT's layer (arXiv 2110.02178), which is a block of its own."""
    unit = {"name": "mobilevit", "block": {"norm": "none", "ffn": "none"}}
    return {
        "model": "pyramid", "dims": [32, 64, 96], "depths": [1, 2, 2], "layer": ["mbconv", ["mbconv", unit], ["mbconv", unit]],
        "stem": {"name": "overlap", "stride": by_size(img_size, 2, 4, 8)}}


@preset
def levit_micro(img_size: int) -> dict:
    """A small pyramid of LeViT's attention (arXiv 2104.01136) after its convolutional stem; strided convolutions between the stages."""
    return {
        "model": "pyramid", "dims": [64, 96, 128], "depths": [2, 2, 2], "layer": "levit", "ffn": {"name": "mlp", "mlp_ratio": 2, "norm": "batch"},
        "stem": {"name": "overlap", "stride": by_size(img_size, 4, 8, 16), "proj": False}, "block": {"norm": "batch"},
        "downsample": {"name": "conv_stride", "norm": "batch"}, "head": {"norm": "batch"}}


@preset
def van_micro(img_size: int) -> dict:
    """A small VAN (arXiv 2202.09741): large-kernel attention and the convolutional feed-forward."""
    return {
        "model": "pyramid", "dims": [32, 64, 128, 256], "depths": [1, 1, 3, 1], "layer": "large_kernel_attention", "ffn": "conv_ffn",
        "stem": overlapping(img_size, "batch", 3), "downsample": {"name": "conv_stride", "norm": "batch"},
        "block": {"norm": "batch", "layer_scale": 1e-2}}


@preset
def mvitv2_micro(img_size: int) -> dict:
    """A small MViTv2 (arXiv 2112.01526), whose maps are halved between its stages instead of in their first attention."""
    return {
        "model": "pyramid", "dims": [32, 64, 128, 256], "depths": [1, 1, 3, 1], "layer": [{"name": "multi_scale", "stride": s} for s in (8, 4, 2, 1)],
        "stem": overlapping(img_size, False, 3)}


@preset
def xcit_micro(img_size: int) -> dict:
    """A small model of XCiT's attention (arXiv 2106.09681) with the convolutional feed-forward in place of its local interaction."""
    return {
        "model": "isotropic", "dim": 128, "depth": 6, "layer": "xcit", "ffn": "conv_ffn", "position": "sincos2d",
        "stem": {"name": "overlap", "stride": by_size(img_size, 4, 8, 16)}, "block": {"num_heads": 4, "layer_scale": 1.0}}


@preset
def cait_micro(img_size: int) -> dict:
    """A small model in the manner of CaiT (arXiv 2103.17239): self-attention, then two blocks of class attention; layer scale throughout."""
    return vit_tiny(img_size) | {
        "dim": 128, "depth": 8, "layer": ["mhsa"] * 6 + ["class_attention"] * 2, "block": {"num_heads": 4, "layer_scale": 1e-1}}
