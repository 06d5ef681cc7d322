"""Weights of timm's models in the presets of the same name, whose layers can then be swapped.

A port is a list of rules, (pattern, replacement) of `re.sub`, that turn timm's names of weights into ours. What other libraries keep
apart, and one linear map does here, is joined before: queries, keys and values; a class token and its place; in LeViT and MobileViT, linear
maps and the batch norms after them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import torch
from torch import Tensor, nn

from layerzoo.errors import bad_value, unknown_name
from layerzoo.models.create import build_model
from layerzoo.models.model import Model
from layerzoo.models.presets import PRESETS

_EPS = 1e-5  # of batch norms, which their weights do not tell
_Rules = list[tuple[str, str | Callable[[re.Match], str]]]


def from_timm(model: nn.Module, name: str) -> Model:
    """The preset `name` with the weights of a model of timm, such that both give the same logits.

    The size of the image, the channels and the classes are the model's; so are dtype, device and mode. Dropout is that of the preset.

    Args:
        model: of `timm.create_model`, pretrained or not.
        name: one of `PORTS`, the architecture that the model is of.
    Raises:
        ValueError: for another name, a model of another architecture, and weights that are left over, missing or of another shape.
    """
    if name not in PORTS:
        raise unknown_name("model to port", name, PORTS, "layerzoo.models.port.PORTS")
    architectures, rules = PORTS[name]
    found = (getattr(model, "pretrained_cfg", None) or {}).get("architecture", type(model).__name__)
    if not re.fullmatch(architectures, found):
        expected = f"one of timm's {architectures}"
        raise bad_value(f"model to port to {name}", got=found, expected=expected, do="Choose the preset of this architecture.")
    first = next(model.parameters())
    size = image_size(model)
    config = PRESETS[name](224) | {"input_size": (first_channels(model), *size), "num_classes": model.num_classes}
    ours = build_model(config).to(first)
    wanted, weights = ours.state_dict(), renamed(folded(joined(model.state_dict(), size)), rules)
    wrong = {
        "left over": [k for k in weights if k not in wanted], "missing": [k for k in wanted if k not in weights],
        "of another shape": [k for k in wanted if k in weights and _bare(weights[k].shape) != _bare(wanted[k].shape)]}
    told = "; ".join(f"{what} {', '.join(names)}" for what, names in wrong.items() if names)
    if told:
        raise bad_value(f"weights for {name}", got=told, expected="those of the preset", do="Build the model with timm's own options.")
    ours.load_state_dict({k: weights[k].reshape(v.shape) for k, v in wanted.items()})
    return ours.train(model.training)


def image_size(model: nn.Module) -> tuple[int, int]:
    """(H, W) that a model of timm is built for."""
    for part in ("patch_embed", "stem"):
        size = getattr(getattr(model, part, None), "img_size", None)
        if size is not None:
            return tuple(size)
    parts = dict(model.named_modules())
    attention = parts.get("stages.0.blocks.0.attn")
    if hasattr(attention, "resolution"):  # of LeViT, which keeps the size of its first map alone
        return tuple(side * model.stem.stride for side in attention.resolution)
    bias = parts.get("stages.2.blocks.0.attn.rel_pos")
    if bias is not None:  # of CoAtNet, whose third stage sees every 16th pixel
        return tuple(16 * side for side in bias.window_size)
    return tuple(model.pretrained_cfg["input_size"][1:])


def first_channels(model: nn.Module) -> int:
    """Channels of the images that a model reads."""
    return next(m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d))


def joined(weights: dict[str, Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
    """Weights with one projection for queries, keys and values, and tables as maps, for images of `size`."""
    weights = dict(weights)
    for name in list(weights):
        stem, _, last = name.rpartition(".")
        owner = stem.rpartition(".")[0]
        if re.search(r"\.q\.(weight|bias)$", name) and f"{owner}.kv.{last}" in weights:
            weights[f"{owner}.qkv.{last}"] = torch.cat([weights.pop(name), weights.pop(f"{owner}.kv.{last}")])
        elif last == "q_bias":  # keys have none there
            q, v = weights.pop(name), weights.pop(f"{stem}.v_bias")
            weights[f"{stem}.qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
        elif re.search(r"\.fc1\.(weight|bias)$", name) and f"{owner}.gate.norm.weight" in weights:  # of gMLP
            weights[name], weights[f"{owner}.fc_gate.{last}"] = weights[name].chunk(2)
        elif last == "relative_position_bias_table":
            table = weights.pop(name)
            if table.ndim == 3:  # of MaxViT, from keys to queries
                weights[f"{stem}.relative_bias.table"] = table.flip(1, 2)
                continue
            rows = _rows(len(table), size if stem.endswith(".rel_pos") else (1, 1))  # windows are square
            weights[f"{stem}.relative_bias.table"] = table.T.unflatten(1, (rows, -1))
            for part in ("weight", "bias") if stem.endswith(".rel_pos") else ():  # of CoAtNet, whose q, k and v of a head stand together
                by_head = weights[f"{owner}.qkv.{part}"].unflatten(0, (table.shape[1], 3, -1))
                weights[f"{owner}.qkv.{part}"] = by_head.transpose(0, 1).flatten(0, 2)
        elif last == "attention_biases":
            table = weights.pop(name)
            heads, places = table.shape
            weights[f"{stem}.table"] = table.unflatten(1, (_rows(places, size), -1))
            for part in ("weight", "bias") if f"{stem}.qkv.weight" in weights else ():
                # of EfficientFormer, whose q, k and v of a head stand together, as LeViT's do here too, and v is four times as wide
                by_head = weights[f"{stem}.qkv.{part}"].unflatten(0, (heads, 6, -1)).split((1, 1, 4), 1)
                weights[f"{stem}.qkv.{part}"] = torch.cat([t.flatten(0, 2) for t in by_head])
        elif last in ("rel_pos_h", "rel_pos_w"):  # of MViTv2, where they begin at the farthest offset that there is
            stage, block = (int(number) for number in name.split(".")[1:4:2])
            weights[name] = weights[name].roll(max(1, 4 >> stage) - 1 if block or not stage else 0, 0)
        elif last == "attention_bias_idxs" or name.endswith((".proj_l.bias", "attn.k.bias")):  # biases that a softmax takes away
            del weights[name]
    if "stem.conv2.weight" in weights and "stem.conv2.bias" not in weights:  # of CoAtNet
        weights["stem.conv2.bias"] = torch.zeros_like(weights["stem.conv2.weight"][:, 0, 0, 0])
    if "pos_embed" in weights:
        places = weights.pop("pos_embed")
        if "blocks_token_only.0.norm1.weight" not in weights:  # CaiT's class token has no place
            weights["prefix"], places = weights.pop("cls_token") + places[:, :1], places[:, 1:]
        rows = size[0] // weights["patch_embed.proj.weight"].shape[2]
        weights["position.table"] = places.transpose(1, 2).unflatten(2, (rows, -1))
    return weights


def _rows(places: int, size: tuple[int, int]) -> int:
    """Of the maps with so many places, that of the shape nearest to `size`: how many rows it has."""
    return min((r for r in range(1, places + 1) if places % r == 0), key=lambda r: abs(math.log(r * r * size[1] / (places * size[0]))))


def folded(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights without biases that a batch norm takes away again, without norms that biases are for, and with the mean of two maps."""
    weights = _folded_levit(dict(weights))
    for name in list(weights):
        if found := re.fullmatch(r"(.*\.conv_(?:kxk|proj|fusion))\.conv\.weight", name):
            _fold(weights, f"{found[1]}.conv", f"{found[1]}.bn")
        if name.endswith(".gamma_xca"):  # of EdgeNeXt
            scale, proj = weights.pop(name), f"{name.removesuffix('.gamma_xca')}.xca.proj"
            weights |= {f"{proj}.weight": scale[:, None] * weights[f"{proj}.weight"], f"{proj}.bias": scale * weights[f"{proj}.bias"]}
        mean = re.sub(r"conv(\d?)\.bias$", r"norm\1.running_mean", name)
        if mean != name and mean in weights:
            weights[mean] = weights[mean] - weights.pop(name)
    if "head_dist.weight" in weights:
        for last in ("weight", "bias"):
            weights[f"head.{last}"] = (weights[f"head.{last}"] + weights.pop(f"head_dist.{last}")) / 2
    return weights


def _folded_levit(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of LeViT, which has a batch norm after each linear map, with those alone that end a branch, of the stem, and of one head.

    Both heads normalise the same features, but each its own way: what is left is the first one's statistics, and all else goes into the maps.
    """
    for name in [n for n in weights if n.endswith(".linear.weight") and not n.startswith(("stem.", "head"))]:
        owner = name.removesuffix(".linear.weight")
        if owner.endswith((".proj.ln", ".ln2")):
            weights[f"{owner}.linear.bias"] = torch.zeros_like(weights[name][:, 0]).flatten()
        else:
            _fold(weights, f"{owner}.linear", f"{owner}.bn")
    if "head.bn.weight" in weights:
        kept = {last: weights[f"head.bn.{last}"] for last in ("running_mean", "running_var", "num_batches_tracked")}
        mean, spread = kept["running_mean"].double(), (kept["running_var"].double() + _EPS).sqrt()
        for head in ("head", "head_dist") if "head_dist.bn.weight" in weights else ("head",):
            scale, shift = _scale_and_shift(weights, f"{head}.bn")
            weight, bias = (weights.pop(f"{head}.linear.{last}").double() for last in ("weight", "bias"))
            weights |= {f"{head}.weight": weight * scale * spread, f"{head}.bias": bias + weight @ (scale * mean + shift)}
        kept |= {"weight": torch.ones_like(mean), "bias": torch.zeros_like(mean)}
        weights |= {f"head.bn.{last}": value for last, value in kept.items()}
    return weights


def _fold(weights: dict[str, Tensor], linear: str, norm: str) -> None:
    """Take the batch norm `norm` into the linear map or convolution `linear` before it, which gets a bias."""
    scale, weights[f"{linear}.bias"] = _scale_and_shift(weights, norm)
    weight = weights[f"{linear}.weight"]
    weights[f"{linear}.weight"] = weight * scale.view(-1, *[1] * (weight.ndim - 1))


def _scale_and_shift(weights: dict[str, Tensor], norm: str) -> tuple[Tensor, Tensor]:
    """The batch norm `norm`, which is taken out of the weights, in eval mode: scale x + shift, exact in double precision."""
    *parts, _ = (weights.pop(f"{norm}.{last}") for last in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"))
    weight, bias, mean, var = (part.double() for part in parts)
    scale = weight / (var + _EPS).sqrt()
    return scale, bias - scale * mean


def renamed(weights: dict[str, Tensor], rules: _Rules) -> dict[str, Tensor]:
    """Weights under the names that the rules, one after the other, turn theirs into."""
    done = {}
    for name, weight in weights.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        done[name] = weight
    return done


def _bare(shape: torch.Size) -> list[int]:
    """A shape without ones: linear maps are convolutions of 1 x 1 elsewhere, and scales (C, 1, 1)."""
    return [side for side in shape if side != 1]


def _after(prefix: str, step: int, suffix: str) -> Callable[[re.Match], str]:
    """A replacement that counts: the first group, a number, plus `step`, between two texts."""
    return lambda found: f"{prefix}{int(found[1]) + step}{suffix}"


_BLOCK: _Rules = [
    (r"blocks\.(\d+)\.norm1\.", r"blocks.\1.norm."), (r"blocks\.(\d+)\.norm2\.", r"blocks.\1.ffn_norm."), (r"\.mlp\.", ".ffn."),
    (r"\.attn\.", ".layer."), (r"^layers\.", "stages."), (r"^patch_embed\.proj", "stem.embed"), (r"^patch_embed\.norm", "stem.norm"),
    (r"^stem\.(proj|conv)\.", "stem.embed."), (r"^head\.(weight|bias)", r"head.fc.\1"), (r"^head\.norm\.", "head.pooled_norm."),
    (r"\.downsample\.(proj|reduction)\.", lambda found: f".downsample.{'conv' if found[1] == 'proj' else 'proj'}."),
    (r"\.layer_scale1\.", ".layer_branch.0."), (r"\.layer_scale2\.", ".ffn_branch.0."),
]
_MBCONV: _Rules = [
    (r"\.shortcut\.expand\.", ".shortcut.1."), (r"\.pre_norm\.", ".branch.0."), (r"\.conv1_1x1\.", ".branch.1.0."), (r"\.norm1\.", ".branch.1.1."),
    (r"\.conv2_kxk\.", ".branch.3.0."), (r"\.norm2\.", ".branch.3.1."), (r"\.se\.fc1\.", ".branch.5.gate.0."), (r"\.se\.fc2\.", ".branch.5.gate.2."),
    (r"\.conv3_1x1\.", ".branch.6."),
]
_MAX: _Rules = [  # before the rules of units
    (r"^stem\.conv1\.", "stem.convs.0.0."), (r"^stem\.norm1\.", "stem.convs.0.1."), (r"^stem\.conv2\.", "stem.proj."),
    (r"^head\.norm\.", "head.pooled_norm."), (r"^head\.pre_logits\.fc\.", "head.hidden.0."), (r"\.rel_pos\.", "."), (r"\.mlp\.", ".ffn."),
    (r"^stages\.(\d)\.", _after("stages.", 1, ".")),
]
_COATNET: _Rules = [
    *_MAX, (r"^(stages\.[34])\.blocks\.0\.", r"\1.downsample."),
    (r"^(stages\.[34]\.blocks)\.(\d)\.", lambda found: f"{found[1]}.{int(found[2]) - 1}."),
    (r"^(stages\.[34]\..*)\.norm1\.(norm\.)?", r"\1.norm."), (r"^(stages\.[34]\..*)\.norm2\.", r"\1.ffn_norm."),
    (r"\.downsample\.attn\.", ".downsample."), (r"\.attn\.", ".layer."), (r"\.downsample\.shortcut\.expand\.", ".downsample.shortcut."), *_MBCONV,
]
_MAXVIT: _Rules = [
    *_MAX, (r"\.blocks\.(\d)\.conv\.", lambda found: f".blocks.{3 * int(found[1])}."),
    (r"\.blocks\.(\d)\.attn_block\.", lambda found: f".blocks.{3 * int(found[1]) + 1}.attn_block."),
    (r"\.blocks\.(\d)\.attn_grid\.", lambda found: f".blocks.{3 * int(found[1]) + 2}.attn_grid."),
    (r"\.attn_(block|grid)\.norm1\.", ".norm."), (r"\.attn_(block|grid)\.norm2\.", ".ffn_norm."), (r"\.attn_(block|grid)\.attn\.", ".layer."),
    (r"\.attn_(block|grid)\.", "."), *_MBCONV,
    (r"^(stem\.convs\.0|stages\.\d\.blocks\.0\.branch\.3)\.(\d)\.", lambda found: f"{found[1]}.{int(found[2]) + 1}."),  # after padding
]
_MVIT_V2: _Rules = [
    (r"^stages\.([123])\.blocks\.0\.", r"stages.\1.downsample."),
    (r"^(stages\.[123]\.blocks)\.(\d)\.", lambda found: f"{found[1]}.{int(found[2]) - 1}."), (r"\.shortcut_proj_attn\.", ".shortcut."),
    (r"\.attn\.pool_([qkv])\.", lambda found: f".attn.attention.pools.{'qkv'.index(found[1])}.conv."),
    (r"\.attn\.norm_([qkv])\.", lambda found: f".attn.attention.pools.{'qkv'.index(found[1])}.norm."),
    (r"\.attn\.rel_pos_h$", ".attn.attention.row_table"), (r"\.attn\.rel_pos_w$", ".attn.attention.column_table"),
    (r"\.downsample\.norm1\.", ".downsample.norm."), (r"\.downsample\.norm2\.", ".downsample.ffn_norm."), *_BLOCK,
    (r"\.downsample\.layer\.", ".downsample."),
]
_RESNET: _Rules = [
    (r"^layer(\d)\.", _after("stages.", -1, ".blocks.")), (r"^conv1\.", "stem.conv."), (r"^bn1\.", "stem.norm."), (r"^fc\.", "head.fc."),
    (r"\.downsample\.", ".shortcut."), (r"\.conv(\d)\.", lambda found: f".branch.{2 * int(found[1]) - 2}.0."),
    (r"\.bn(\d)\.", lambda found: f".branch.{2 * int(found[1]) - 2}.1."),
]
_VIT: _Rules = [*_BLOCK, (r"^blocks\.(\d+)\.layer\.", r"blocks.\1.layer.layer."), (r"^blocks\.", "stages.")]
_CLASS_POOL: _Rules = [
    (r"^cls_token$", "head.class_pool.token"), (r"^(?:blocks_token_only|cls_attn_blocks)\.(\d+)\.(attn\.)?", r"head.class_pool.blocks.\1."),
    (r"^(head\.class_pool\..*)\.norm1\.", r"\1.norm."), (r"^(head\.class_pool\..*)\.norm2\.", r"\1.ffn_norm."),
    (r"^(head\.class_pool\..*)\.gamma_?1$", r"\1.scale"), (r"^(head\.class_pool\..*)\.gamma_?2$", r"\1.ffn_scale"),
    (r"^norm\.", "head.pooled_norm."),
]
_CAIT: _Rules = [
    *_CLASS_POOL, (r"\.gamma_1$", ".layer_branch.0.scale"), (r"\.gamma_2$", ".ffn_branch.0.scale"), (r"\.proj_l\.weight$", ".talk_scores"),
    (r"\.proj_w\.weight$", ".talk_weights"), (r"\.proj_w\.bias$", ".talk_bias"), *_BLOCK, (r"^blocks\.", "stages."),
]
_XCIT: _Rules = [
    *_CLASS_POOL, (r"^pos_embed\.token_projection\.", "position.proj."),
    (r"^patch_embed\.proj\.(\d)\.", lambda found: f"stem.convs.{int(found[1]) // 2}."),
    (r"^blocks\.(\d+)\.(?=norm1|gamma1|attn)", lambda found: f"stages.{2 * int(found[1])}."),
    (r"^blocks\.(\d+)\.", lambda found: f"stages.{2 * int(found[1]) + 1}."),
    (r"\.norm[13]\.", ".norm."), (r"\.norm2\.", ".ffn_norm."), (r"\.gamma[13]$", ".layer_branch.0.scale"), (r"\.gamma2$", ".ffn_branch.0.scale"),
    (r"\.local_mp\.bn\.", ".layer.norm."), (r"\.local_mp\.", ".layer."), *_BLOCK,
]
_MIXER: _Rules = [*_BLOCK, (r"\.mlp_tokens\.", ".layer."), (r"\.mlp_channels\.", ".ffn."), (r"^blocks\.", "stages.")]
_NEXT: _Rules = [
    (r"^stem\.0\.", "stem.embed."), (r"^stem\.1\.", "stem.norm."), (r"\.downsample\.0\.", ".downsample.pre_norm."),
    (r"\.downsample\.1\.", ".downsample.conv."), (r"\.mlp\.fc1\.", ".expand."), (r"\.mlp\.fc2\.", ".reduce."), (r"\.gamma$", ".scale.scale"),
]
_CONVNEXT: _Rules = [*_NEXT, (r"\.conv_dw\.", ".conv."), (r"^head\.norm\.", "head.pooled_norm.")]
_EDGENEXT: _Rules = [
    *_CONVNEXT, (r"\.convs\.", ".conv.convs."), (r"\.norm_xca\.", ".conv.norm."), (r"\.xca\.", ".conv.attention."),
    (r"\.pos_embd\.token_projection\.", ".conv.position.proj."),
]
_INCEPTION: _Rules = [
    *_NEXT, (r"\.token_mixer\.dwconv_hw\.", ".conv.square."), (r"\.token_mixer\.dwconv_w\.", ".conv.row."),
    (r"\.token_mixer\.dwconv_h\.", ".conv.column."), (r"^head\.fc1\.", "head.hidden.0."), (r"^head\.norm\.", "head.hidden.2."),
    (r"^head\.fc2\.", "head.fc."),
]
_FOCALNET: _Rules = [
    *_BLOCK, (r"\.modulation\.f\.", ".layer.expand."), (r"\.modulation\.h\.", ".layer.modulator."), (r"\.modulation\.proj\.", ".layer.proj."),
    (r"\.modulation\.focal_layers\.(\d+)\.0\.", r".layer.levels.\1."),
]
_SWIN_V2: _Rules = [*_BLOCK, (r"\.logit_scale$", ".log_scale"), (r"\.cpb_mlp\.", ".relative_bias.mlp.")]
_PVT: _Rules = [
    *_BLOCK, (r"\.layer\.sr\.", ".layer.conv."), (r"\.dwconv\.", ".conv."), (r"^stages\.3\.norm\.", "norm."),
    (r"^stages\.(\d+)\.norm\.", _after("stages.", 1, ".downsample.pre_norm.")),
]
_TWINS: _Rules = [
    (r"^blocks\.(\d+)\.", r"stages.\1.blocks."), (r"^patch_embeds\.0\.", "patch_embed."), (r"^patch_embeds\.(\d+)\.", r"stages.\1.downsample."),
    (r"^pos_block\.(\d+)\.proj\.0\.", r"stages.\1.position.conv."), *_BLOCK, (r"\.layer\.sr\.", ".layer.conv."),
    (r"blocks\.(\d+)\.layer\.", lambda found: f"blocks.{found[1]}.layer.{('near', 'far')[int(found[1]) % 2]}."),
]

_GMLP: _Rules = [
    (r"\.mlp_channels\.gate\.norm\.", ".layer.norm."), (r"\.mlp_channels\.gate\.proj\.", ".layer.spatial."),
    (r"\.mlp_channels\.", ".layer."), *_MIXER,
]
_EFFICIENTFORMER: _Rules = [
    (r"^stem\.conv(\d)\.", _after("stem.convs.", -1, ".0.")), (r"^stem\.norm(\d)\.", _after("stem.convs.", -1, ".1.")),
    (r"^(stages\.3\.blocks)\.4\.", r"\1.3."),  # the third flattens the map
    (r"\.mlp\.norm(\d)\.", _after(".mlp.norms.", -1, ".")), (r"\.token_mixer\.", ".layer."), (r"\.ls1\.gamma", ".layer_branch.0.scale"),
    (r"\.ls2\.gamma", ".ffn_branch.0.scale"), *_BLOCK,
]
_LEVIT: _Rules = [
    (r"^stem\.conv(\d)\.linear\.", _after("stem.convs.", -1, ".0.")), (r"^stem\.conv(\d)\.bn\.", _after("stem.convs.", -1, ".1.")),
    (r"^head\.bn\.", "head.pooled_norm."), (r"^head\.(weight|bias)", r"head.fc.\1"), (r"\.attn(_downsample)?\.proj\.ln\.bn\.", ".norm."),
    (r"\.mlp\.ln2\.bn\.", ".ffn_norm."), (r"\.attn_downsample\.q\.", ".query."), (r"\.attn_downsample\.kv\.", ".key_value."),
    (r"\.attn_downsample\.", "."), (r"\.attn\.", ".layer."), (r"\.mlp\.ln(\d)\.", r".ffn.fc\1."), (r"(\.ln)?\.linear\.", "."),
]
_MOBILEVIT: _Rules = [
    (r"^stages\.(\d)\.", r"stages.\1.blocks."), (r"^stem\.bn\.", "stem.norm."), (r"^final_conv\.conv\.", "norm.0."),
    (r"^final_conv\.bn\.", "norm.1."), (r"\.conv_(kxk|proj|fusion)\.conv\.", r".conv_\1."),
    (r"\.conv(\d)_\w+\.(conv|bn)\.", lambda found: f".branch.{2 * int(found[1]) - 2}.{('conv', 'bn').index(found[2])}."),
    (r"\.conv_kxk\.", ".layer.local."), (r"\.transformer\.", ".layer.transformers."), (r"(blocks\.\d)\.norm\.", r"\1.layer.norm."), (r"\.mlp\.", "."),
]
_MOBILEVIT_1: _Rules = [
    *_MOBILEVIT, (r"\.conv_1x1\.", ".layer.widen."), (r"\.attn\.", ".attention."), (r"\.conv_proj\.", ".layer.narrow."),
    (r"\.conv_fusion\.", ".layer.fuse."),
]
_MOBILEVIT_2: _Rules = [
    *_MOBILEVIT, (r"\.conv_1x1\.", ".layer.inward."), (r"\.attn\.qkv_proj\.", ".qkv."), (r"\.attn\.out_proj\.", ".proj."),
    (r"\.conv_proj\.", ".layer.outward."),
]

PORTS: dict[str, tuple[str, _Rules]] = {  # preset: timm's architectures, as a pattern, and the rules
    "resnet18": ("resnet18", _RESNET),
    "resnet34": ("resnet34", _RESNET),
    "resnet50": ("resnet50", _RESNET),
    "deit_tiny": (r"(deit|vit)_tiny_patch16_\d+", _VIT),
    "cait_xxs24": (r"cait_xxs24_\d+", _CAIT),
    "xcit_nano_12_p16": (r"xcit_nano_12_p16_\d+", _XCIT),
    "mixer_s16": ("mixer_s16_224", _MIXER),
    "convnext_tiny": (r"convnext_tiny", _CONVNEXT),
    "edgenext_xx_small": ("edgenext_xx_small", _EDGENEXT),
    "inception_next_tiny": (r"inception_next_tiny", _INCEPTION),
    "poolformer_s12": ("poolformer_s12", _BLOCK),
    "focalnet_tiny_srf": ("focalnet_tiny_srf", _FOCALNET),
    "gmlp_s16": ("gmlp_s16_224", _GMLP),
    "efficientformer_l1": ("efficientformer_l1", _EFFICIENTFORMER),
    "levit_128s": (r"levit_(conv_)?128s", _LEVIT),
    "coatnet_0": ("coatnet_0_224", _COATNET),
    "mvitv2_tiny": ("mvitv2_tiny", _MVIT_V2),
    "maxvit_tiny": ("maxvit_tiny_tf_224", _MAXVIT),
    "swin_tiny": ("swin_tiny_patch4_window7_224", _BLOCK),
    "swinv2_tiny": ("swinv2_tiny_window8_256", _SWIN_V2),
    "pvt_v2_b0": ("pvt_v2_b0", _PVT),
    "twins_svt_small": ("twins_svt_small", _TWINS),
    "mobilevit_s": ("mobilevit_s", _MOBILEVIT_1),
    "mobilevitv2_100": ("mobilevitv2_100", _MOBILEVIT_2),
}
