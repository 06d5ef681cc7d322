"""Public implementations of the layers of the conv, gate, attention and hybrid families, for `bench_peers`.

A batch norm behind a convolution or a linear map folds into it in eval, and our layers have none there, so peers lose theirs; a norm before
all else and an output projection that one of the two lacks are taken away or added.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from layerzoo.downsample.base import squarest
from layerzoo.report.peer import DIM, HEADS, Called, Peer, first, with_output

WINDOW = 8
HEAD_DIM = DIM // HEADS


def folded(module: nn.Module) -> nn.Module:
    """A peer without its batch norms; the activation that timm keeps in some stays."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d)):
                setattr(parent, name, getattr(child, "act", nn.Identity()))
    return module


def _without(module: nn.Module, *names: str) -> nn.Module:
    """A module some of whose parts do nothing."""
    for name in names:
        setattr(module, name, nn.Identity())
    return module


def _projected(module: nn.Module) -> nn.Module:
    """A peer of maps that leaves the output projection to its block: one is added, as ours has it."""
    return nn.Sequential(module, nn.Conv2d(DIM, DIM, 1))


def _on_grid(module: nn.Module, n: int, call: Callable[[nn.Module, Tensor, tuple[int, int]], Tensor]) -> nn.Module:
    """A peer of tokens that is told the sides of their map."""
    grid = squarest(n)
    return Called(module, lambda m, x: call(m, x, grid))


def _on_places(module: nn.Module, n: int) -> nn.Module:
    """A peer of (B, H, W, C), on tokens."""
    return _on_grid(module, n, lambda m, x, grid: m(x.unflatten(1, grid)).flatten(1, 2))


def _on_rows(module: nn.Module) -> nn.Module:
    """A peer of (B, H, W, C), on maps."""
    return Called(module, lambda m, x: m(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def _in_windows(attention: nn.Module, n: int) -> nn.Module:
    """Attention of (windows, places, C), on tokens that timm partitions and joins again."""
    swin = importlib.import_module("timm.models.swin_transformer")

    def call(module: nn.Module, x: Tensor, grid: tuple[int, int]) -> Tensor:
        windows = swin.window_partition(x.unflatten(1, grid), (WINDOW, WINDOW)).flatten(1, 2)
        return swin.window_reverse(module(windows), (WINDOW, WINDOW), *grid).flatten(1, 2)

    return _on_grid(attention, n, call)


def _uncached(module: nn.Module) -> nn.Module:
    """timm keeps a bias of pairs in eval, with a graph that a backward pass uses up: it is made anew, as in training."""
    def call(m: nn.Module, x: Tensor) -> Tensor:
        m.attention_bias_cache.clear()
        return m(x)

    return Called(folded(module), call)


def _hugging_swin_v2(m: object, n: int) -> nn.Module:
    attention = importlib.import_module("transformers.models.swinv2.modeling_swinv2").Swinv2SelfAttention
    return _in_windows(with_output(attention(m.Swinv2Config(attention_probs_dropout_prob=0.0), DIM, HEADS, WINDOW), first), n)


def _hugging_pvt(m: object, n: int) -> nn.Module:
    attention = importlib.import_module("transformers.models.pvt_v2.modeling_pvt_v2").PvtV2SelfAttention
    config = m.PvtV2Config(attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0)
    return _on_grid(attention(config, DIM, HEADS, 4), n, lambda module, x, grid: module(x, *grid)[0])


def _hugging_cvt(m: object, n: int) -> nn.Module:
    attention = importlib.import_module("transformers.models.cvt.modeling_cvt").CvtAttention
    module = attention(HEADS, DIM, 3, 1, 1, 1, 2, "dw_bn", True, 0.0, 0.0, with_cls_token=False)
    return _on_grid(folded(module), n, lambda module, x, grid: module(x, *grid))


def _hugging_focal(m: object, n: int) -> nn.Module:
    modulation = importlib.import_module("transformers.models.focalnet.modeling_focalnet").FocalNetModulation
    return _on_rows(modulation(m.FocalNetConfig(focal_windows=[3], focal_levels=[2]), 0, DIM))


def _window_of_max_vit(m: object, n: int) -> nn.Module:
    module = _without(m.Attention(DIM, dim_head=HEAD_DIM, window_size=WINDOW), "norm")

    def call(attention: nn.Module, x: Tensor, grid: tuple[int, int]) -> Tensor:
        x = x.unflatten(1, grid).unflatten(2, (-1, WINDOW)).unflatten(1, (-1, WINDOW)).transpose(2, 3)
        return attention(x).transpose(2, 3).flatten(3, 4).flatten(1, 2).flatten(1, 2)

    return _on_grid(module, n, call)


def _twins(m: object, n: int) -> nn.Module:
    parts = [m.LocallyGroupedAttn(DIM, num_heads=HEADS, ws=WINDOW), m.GlobalSubSampleAttn(DIM, num_heads=HEADS, sr_ratio=4)]

    def call(parts: nn.ModuleList, x: Tensor, grid: tuple[int, int]) -> Tensor:
        y = parts[0](x, grid)
        return y + parts[1](x + y, grid)

    return _on_grid(nn.ModuleList(parts), n, call)


def _multi_scale(m: object, n: int) -> nn.Module:
    module = m.MultiScaleAttention(
        DIM, DIM, squarest(n), num_heads=HEADS, kernel_q=(3, 3), kernel_kv=(3, 3), stride_kv=(2, 2), has_cls_token=False,
        norm_layer=partial(nn.LayerNorm, eps=1e-6))
    return _on_grid(module, n, lambda module, x, grid: module(x, grid)[0])


def _class_attention(m: object, n: int) -> nn.Module:
    module = m.ClassAttn(DIM, num_heads=HEADS, qkv_bias=True)
    module.token = nn.Parameter(torch.randn(DIM))

    def call(attention: nn.Module, x: Tensor) -> Tensor:
        return attention(torch.cat([attention.token.expand(len(x), 1, -1), x], 1)).repeat(1, x.shape[1], 1)

    return Called(module, call)


def _levit(m: object, n: int) -> nn.Module:
    module = folded(m.Attention(DIM, squarest(n)[0], heads=HEADS, dim_key=16, dim_value=32))
    module.to_out[0] = nn.Hardswish()
    return module


def _maxvit(m: object, n: int) -> nn.Module:
    config = m.MaxxVitTransformerCfg(dim_head=HEAD_DIM, window_size=(WINDOW, WINDOW), grid_size=(WINDOW, WINDOW))
    mobile = folded(m.MbConvBlock(DIM, DIM, cfg=m.MaxxVitConvCfg()))
    block, across = (m.PartitionAttentionCl(DIM, kind, config) for kind in ("block", "grid"))

    def call(parts: nn.ModuleList, x: Tensor) -> Tensor:  # ours leaves the last MLP to its block
        mobile, block, across = parts
        y = block(mobile(x).permute(0, 2, 3, 1))
        return (y + across._partition_attn(across.norm1(y))).permute(0, 3, 1, 2)

    return Called(nn.ModuleList([mobile, block, _without(across, "norm2", "mlp")]), call)


def _edgenext(m: object, n: int) -> nn.Module:
    module = _without(m.SplitTransposeBlock(DIM, num_scales=4, num_heads=HEADS, use_pos_emb=False), "norm", "mlp")
    module.gamma = None
    return module


def _condconv(m: object, n: int) -> nn.Module:
    parts = nn.ModuleList([nn.Linear(DIM, 8), m.CondConv2d(DIM, DIM, 3, padding=1, bias=True, num_experts=8)])
    return Called(parts, lambda parts, x: parts[1](x, parts[0](x.mean((2, 3))).sigmoid()))


def _deformable(m: object, n: int) -> nn.Module:
    offset, modulation = (nn.Conv2d(DIM, width, 3, padding=1) for width in (18, 9))
    parts = nn.ModuleList([offset, modulation, m.DeformConv2d(DIM, DIM, 3, padding=1)])
    return Called(parts, lambda parts, x: parts[2](x, parts[0](x), parts[1](x).sigmoid()))


def _silu() -> object:
    """What timm makes MobileViT of: convolutions with a norm and SiLU."""
    layers = importlib.import_module("timm.layers")
    return importlib.import_module("timm.models.byobnet").LayerFn(conv_norm_act=partial(layers.ConvNormAct, act_layer=nn.SiLU), act=nn.SiLU)


_H = {"num_heads": HEADS}
_PLAIN = _H | {"qkv_bias": False}
_HEADS = {"heads": HEADS, "dim_head": HEAD_DIM}
_WINDOW = _H | {"window_size": WINDOW}
VISION_PEERS = [
    # attention
    Peer("timm", "timm.models.vision_transformer", lambda m, n: m.Attention(DIM, **_H, qkv_bias=True), "mhsa", _H),
    Peer("timm", "timm.models.swin_transformer", lambda m, n: _in_windows(m.WindowAttention(DIM, HEADS, window_size=WINDOW), n),
         "window_attention", _WINDOW),
    Peer("torchvision", "torchvision.models.swin_transformer",
         lambda m, n: _on_places(m.ShiftedWindowAttention(DIM, [WINDOW] * 2, [WINDOW // 2] * 2, HEADS), n), "window_attention",
         _WINDOW | {"shift": True}),
    Peer("vit-pytorch", "vit_pytorch.max_vit", _window_of_max_vit, "window_attention", _WINDOW | _PLAIN),
    Peer("timm", "timm.models.swin_transformer_v2", lambda m, n: _in_windows(m.WindowAttention(DIM, (WINDOW, WINDOW), HEADS), n),
         "swin_v2_attention", _WINDOW),
    Peer("torchvision", "torchvision.models.swin_transformer",
         lambda m, n: _on_places(m.ShiftedWindowAttentionV2(DIM, [WINDOW] * 2, [WINDOW // 2] * 2, HEADS), n), "swin_v2_attention",
         _WINDOW | {"shift": True}),
    Peer("transformers", "transformers", _hugging_swin_v2, "swin_v2_attention", _WINDOW),
    Peer("timm", "timm.layers.halo_attn", lambda m, n: _projected(m.HaloAttn(DIM, **_H, block_size=8, halo_size=3)), "halo", _H, maps=True),
    Peer("halonet-pytorch", "halonet_pytorch", lambda m, n: m.HaloAttention(dim=DIM, block_size=8, halo_size=3, **_HEADS), "halo", _H, maps=True),
    Peer("timm", "timm.models.pvt_v2",
         lambda m, n: _on_grid(m.Attention(DIM, **_H, sr_ratio=4), n, lambda module, x, grid: module(x, grid)), "spatial_reduction", _H),
    Peer("transformers", "transformers", _hugging_pvt, "spatial_reduction", _H),
    Peer("timm", "timm.models.twins", _twins, "twins", _WINDOW),
    Peer("vit-pytorch", "vit_pytorch.twins_svt", lambda m, n: _without(m.LocalAttention(DIM, **_HEADS, patch_size=WINDOW), "norm"), "twins",
         _WINDOW | _PLAIN | {"kind": "local"}, maps=True),
    Peer("timm", "timm.models.mvitv2", _multi_scale, "multi_scale", _H | {"reach": 63}),
    Peer("timm", "timm.models.cait", _class_attention, "class_attention", _H),
    Peer("timm", "timm.layers.diff_attention", lambda m, n: m.DiffAttention(DIM, **_H), "differential_attention", _H),
    # hybrid
    Peer("timm", "timm.layers.lambda_layer", lambda m, n: folded(m.LambdaLayer(DIM, **_H, dim_head=16, r=9)), "lambda_layer", _H, maps=True),
    Peer("lambda-networks", "lambda_networks", lambda m, n: folded(m.LambdaLayer(dim=DIM, dim_out=DIM, r=9, dim_k=16, heads=HEADS)), "lambda_layer",
         _H, maps=True),
    Peer("timm", "timm.layers.bottleneck_attn", lambda m, n: _projected(m.BottleneckAttn(DIM, feat_size=squarest(n), **_H)), "botnet", _H, maps=True),
    Peer("bottleneck-transformer-pytorch", "bottleneck_transformer_pytorch.bottleneck_transformer_pytorch",
         lambda m, n: _projected(m.Attention(dim=DIM, fmap_size=squarest(n), **_HEADS, rel_pos_emb=True)), "botnet", _H, maps=True),
    Peer("timm", "timm.models.maxxvit",
         lambda m, n: m.Attention2d(DIM, dim_head=HEAD_DIM, rel_pos_cls=partial(m.RelPosBias, window_size=squarest(n))), "coatnet_attention", _H,
         maps=True),
    Peer("timm", "timm.models.convit", lambda m, n: m.GPSA(DIM, **_H), "gated_positional_attention", _H),
    Peer("vit-pytorch", "vit_pytorch.cvt",
         lambda m, n: folded(_without(m.Attention(DIM, proj_kernel=3, kv_proj_stride=2, **_HEADS), "norm")), "cvt_attention", _PLAIN, maps=True),
    Peer("transformers", "transformers", _hugging_cvt, "cvt_attention", _H),
    Peer("timm", "timm.models.levit",
         lambda m, n: _uncached(m.Attention(DIM, key_dim=16, **_H, attn_ratio=2.0, resolution=squarest(n), act_layer=nn.Hardswish)), "levit", _H),
    Peer("vit-pytorch", "vit_pytorch.levit", _levit, "levit", _H, maps=True),
    Peer("timm", "timm.models.efficientformer_v2", lambda m, n: _uncached(m.Attention2d(DIM, key_dim=32, **_H, attn_ratio=4, resolution=squarest(n))),
         "efficientformer", _H, maps=True),
    Peer("timm", "timm.models.maxxvit", _maxvit, "maxvit", _WINDOW, maps=True),
    Peer("timm", "timm.models.edgenext", _edgenext, "edgenext", _H, maps=True),
    Peer("timm", "timm.models.mobilevit",
         lambda m, n: folded(m.MobileVitBlock(DIM, transformer_dim=DIM, transformer_depth=2, patch_size=2, **_H, layers=_silu())), "mobilevit",
         _H | {"hidden_dim": DIM}, maps=True),
    Peer("timm", "timm.models.mobilevit",
         lambda m, n: folded(m.MobileVitV2Block(DIM, transformer_dim=DIM // 2, transformer_depth=2, patch_size=2, layers=_silu())), "mobilevit_v2",
         maps=True),
    # conv
    Peer("timm", "timm.layers", lambda m, n: m.create_conv2d(DIM, DIM, 7, depthwise=True, bias=True), "depthwise_conv", maps=True),
    Peer("timm", "timm.models.focalnet", lambda m, n: m.FocalModulation(DIM, focal_window=3, focal_level=2), "focal_modulation", maps=True),
    Peer("transformers", "transformers", _hugging_focal, "focal_modulation", maps=True),
    Peer("timm", "timm.models.inception_next", lambda m, n: m.InceptionDWConv2d(DIM), "inception_dw", maps=True),
    Peer("timm", "timm.models.ghostnet", lambda m, n: folded(m.GhostModule(DIM, DIM, act_layer=nn.Identity)), "ghost_conv", {"bias": False}, maps=True),
    Peer("timm", "timm.models.fasternet", lambda m, n: m.Partial_conv3(DIM, 4, "split_cat"), "partial_conv", maps=True),
    Peer("timm", "timm.layers", _condconv, "dynamic_conv", maps=True),
    Peer("timm", "timm.models.byobnet", lambda m, n: _without(m.RepVggBlock(DIM, DIM), "act"), "repvgg_conv", maps=True),
    Peer("timm", "timm.models.fastvit", lambda m, n: folded(m.ReparamLargeKernelConv(DIM, DIM, 13, 1, 1, small_kernel=5)), "large_kernel_conv",
         {"bias": False}, maps=True),
    Peer("torchvision", "torchvision.ops", _deformable, "deformable_conv", maps=True),
    # gate
    Peer("timm", "timm.layers", lambda m, n: m.SEModule(DIM), "se", maps=True),
    Peer("torchvision", "torchvision.ops", lambda m, n: m.SqueezeExcitation(DIM, DIM // 16), "se", maps=True),
    Peer("timm", "timm.layers", lambda m, n: m.EcaModule(DIM), "eca", maps=True),
    Peer("timm", "timm.layers.cbam", lambda m, n: m.CbamModule(DIM), "cbam", maps=True),
    Peer("timm", "timm.layers", lambda m, n: m.GatherExcite(DIM, extent=4, use_mlp=False), "gather_excite", {"extent": 4}, maps=True),
    Peer("timm", "timm.layers", lambda m, n: m.GlobalContext(DIM, fuse_add=True, fuse_scale=False, rd_ratio=1 / 16), "global_context", maps=True),
    Peer("timm", "timm.layers.coord_attn", lambda m, n: m.CoordAttn(DIM, rd_channels=8, bias=True, norm_layer=None), "coordinate_attention", maps=True),
]
