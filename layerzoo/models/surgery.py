"""Put a layer in place of the attention of a trained model, of timm, torchvision, transformers or layerzoo, and keep its weights."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from layerzoo.errors import bad_value
from layerzoo.layers.base import HeadsLayer, Layer
from layerzoo.models.block import Block
from layerzoo.models.model import Model
from layerzoo.models.pyramid import Pyramid
from layerzoo.models.slots import MultiheadSlot, TokenSlot, TransformersSlot, WindowSlot
from layerzoo.models.stage import Stage
from layerzoo.registry import LAYERS


@dataclass(frozen=True)
class Swap:
    """One replaced module.

    Fields:
        name: of the module in the model, with dots.
        old: class of what stood there.
        new: class of the layer that stands there now.
        inherited: parameters that have the old module's weights.
        fresh: parameters that start as in a new layer.
        dropped: parameters of the old module that have no place in the new one.
        num_apart: prefix tokens that attend to all tokens exactly, beside the layer, since it needs a map, where they have no place.
    """

    name: str
    old: str
    new: str
    inherited: tuple[str, ...]
    fresh: tuple[str, ...]
    dropped: tuple[str, ...]
    num_apart: int = 0

    def __str__(self) -> str:
        lists = {"inherited": self.inherited, "fresh": self.fresh, "dropped": self.dropped}
        told = [f"{what} {', '.join(names)}" for what, names in lists.items() if names]
        told += [f"{self.num_apart} prefix tokens apart"] if self.num_apart else []
        return f"{self.name}: {self.old} -> {self.new}; {'; '.join(told) or 'no parameters'}"


def swap(model: nn.Module, layer: str | dict | type | list, where: str | None = None, inherit: bool = True) -> list[Swap]:
    """Put a layer in place of each attention module of `model`, which is changed, and report what became of the weights.

    Known are `Attention` of timm (ViT, DeiT), its `TalkingHeadAttn` (CaiT) and `WindowAttention` (Swin, whose blocks then see their
    whole map), the attention of torchvision's ViT, that of ViT, DeiT and DINOv2 in transformers, and any layer in a layerzoo model.
    The number of heads and the biases are those of the old module unless the options say otherwise; dropout inside it goes. All
    modules are checked before any is replaced.

    Args:
        model: any model that holds such modules.
        layer: name, {"name": ..., option: ...} or class; a list is cycled over the modules, in the model's order.
        where: pattern of names, such as "blocks.[0-5].attn", in which * stands for dots too; None = every attention module, and in a
            layerzoo model every layer with heads.
        inherit: keep the old query, key, value and output weights, where the layer has these.
    Raises:
        ValueError: where nothing matches, for an attention module that no layer can stand for, for a layer that needs the size of a
            map that the model does not have, and for unknown names and options.
    """
    places = _places(model, where)
    layers = layer if isinstance(layer, list) else [layer]
    made = [(name, *_replace(model, name, layers[i % len(layers)], inherit)) for i, name in enumerate(places)]
    for name, module, spec, _ in made:
        owner, _, attribute = name.rpartition(".")
        owner = model.get_submodule(owner)
        setattr(owner, attribute, module)
        if type(module) is WindowSlot:
            owner.set_input_size(owner.input_resolution, owner.input_resolution, always_partition=False)
        _note(model, name, spec)
    return [swapped for *_, swapped in made]


_SLOTS = {
    "timm.layers.attention.Attention": TokenSlot,
    "timm.models.cait.TalkingHeadAttn": TokenSlot,
    "timm.models.swin_transformer.WindowAttention": WindowSlot,
    "torch.nn.modules.activation.MultiheadAttention": MultiheadSlot,
    "transformers.models.vit.modeling_vit.ViTAttention": TransformersSlot,
    "transformers.models.deit.modeling_deit.DeiTAttention": TransformersSlot,
    "transformers.models.dinov2.modeling_dinov2.Dinov2Attention": TransformersSlot,
    "transformers.models.dinov2_with_registers.modeling_dinov2_with_registers.Dinov2WithRegistersAttention": TransformersSlot,
}
_ROTARY = "its model hands it rotary positions, which no layer takes"
_REASONS = {  # why no layer can stand for it
    "timm.models.cait.ClassAttn": "it answers for the class token alone, and a layer answers for every token",
    "timm.models.swin_transformer_v2.WindowAttention": "its masks and its cosine scores belong to its windows",
    "timm.layers.attention.AttentionRope": _ROTARY,
    "timm.models.eva.EvaAttention": _ROTARY,
}


def _path(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _core(module: nn.Module) -> nn.Module:
    """The layer in a slot, or the module itself."""
    return module.layer if isinstance(module, TokenSlot) else module


def _hosts(model: nn.Module, name: str) -> list[nn.Module]:
    """The modules that hold `name`, from the nearest to the model."""
    parts = name.split(".")[:-1]
    return [model.get_submodule(".".join(parts[:i])) for i in range(len(parts), -1, -1)]


def _in_block(model: nn.Module, name: str) -> bool:
    return isinstance(_hosts(model, name)[0], Block)


def _known(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that can be replaced, by name."""
    modules = dict(model.named_modules())
    known = {n: m for n, m in modules.items() if n and (_path(m) in _SLOTS or isinstance(m, TokenSlot))}
    known |= {f"{n}.layer".lstrip("."): m.layer for n, m in modules.items() if isinstance(m, Block)}
    return known


def _places(model: nn.Module, where: str | None) -> list[str]:
    """The names of the modules to replace."""
    known = _known(model)
    if where is None:
        found = [n for n, m in known.items() if isinstance(_core(m), HeadsLayer) or not _in_block(model, n)]
    else:
        found = [n for n in known if fnmatchcase(n, where)]
    matched = {n: m for n, m in model.named_modules() if fnmatchcase(n, where or "*")}
    for name, module in matched.items():
        if _path(module) in _REASONS and (where or not found):
            got, do = f"{name} ({type(module).__name__})", f"Leave it out of where: {_REASONS[_path(module)]}."
            raise bad_value("module to swap", got=got, expected="one that a layer can stand for", do=do)
    if not found and where is None:
        do = "help(layerzoo.swap) lists the kinds."
        raise bad_value("model", got=type(model).__name__, expected="one with attention of a known kind", do=do)
    if not found:
        kinds = ", ".join(sorted({type(m).__name__ for m in matched.values()}))
        got = f"{where!r}, which matches {kinds + ' alone' if kinds else 'nothing'}"
        expected = f"the names of attention that is known: {', '.join(list(known)[:2]) or 'none in this model'}"
        raise bad_value("where", got=got, expected=expected, do="help(layerzoo.swap) lists the kinds.")
    return found


def _replace(model: nn.Module, name: str, layer: str | dict | type, inherit: bool) -> tuple[nn.Module, dict, Swap]:
    """What to put at `name`, the specification of its layer, and the report."""
    old = model.get_submodule(name)
    spec = dict(layer) if isinstance(layer, dict) else {"name": layer}
    new, spec = (_for_block if _in_block(model, name) else _for_slot)(model, name, old, spec)
    like = next((p for m in (old, model) for p in m.parameters()), None)
    new = (new if like is None else new.to(like)).train(old.training)
    inherited, dropped = _inherit(new, old) if inherit else ((), tuple(n for n, _ in old.named_parameters()))
    fresh = tuple(n for n, _ in new.named_parameters() if n not in inherited)
    names = name, *(type(_core(m)).__name__ for m in (old, new))
    return new, spec, Swap(*names, inherited, fresh, dropped, getattr(new, "num_apart", 0))


def _for_block(model: nn.Module, name: str, old: nn.Module, spec: dict) -> tuple[nn.Module, dict]:
    """As its layerzoo model would make it, but with the old one's heads and biases; and the specification that says so."""
    hosts, core = _hosts(model, name), _core(old)
    grid = next((m.grid for m in hosts if isinstance(m, (Model, Stage))), getattr(core, "grid", None))
    owner = next((m for m in hosts if isinstance(m, Model)), None)
    block, position = ({}, None) if owner is None else (owner.config.get("block") or {}, owner.inner_position)
    heads = {k: v for k, v in block.items() if k == "num_heads"}
    defaults = heads | _options(core)
    sized = defaults if grid is None else defaults | {"grid": grid}
    new = LAYERS.create(spec, core.dim, defaults=sized, **({"position": position} if position else {}))
    taken = inspect.signature(type(new)).parameters
    spec = {"name": spec["name"]} | {k: v for k, v in defaults.items() if k in taken} | spec
    return type(old)(new, old.num_prefix, old.grid, **heads) if isinstance(old, TokenSlot) else new, spec


def _for_slot(model: nn.Module, name: str, old: nn.Module, spec: dict) -> tuple[nn.Module, dict]:
    """The layer under the old module's calling convention."""
    if isinstance(old, TokenSlot):
        slot, source, dim = type(old), old.layer if old.prefix is None else old.prefix, old.layer.dim
        num_prefix, grid = old.num_prefix, old.grid
    else:
        slot, source = _SLOTS[_path(old)], old
        num_prefix, grid = _sequence(model, name, slot)
        dim = _weights(old)["qkv.weight"][0].shape[1]
    options = _options(source)
    defaults = options | ({} if grid is None else {"grid": grid})
    if slot is WindowSlot and source is old and _takes(spec, "shift"):  # a window layer of the same kind
        block = _hosts(model, name)[0]
        defaults |= {"window_size": max(block.window_size), "shift": any(block.shift_size)}
    return slot(LAYERS.create(spec, dim, defaults=defaults), num_prefix, grid, **options), spec


def _options(source: nn.Module) -> dict:
    """The heads and biases of an attention module, where it has them."""
    weights = _weights(source)
    heads = getattr(source, "num_heads", getattr(source, "num_attention_heads", None))
    return ({"num_heads": heads} if heads else {}) | ({"qkv_bias": "qkv.bias" in weights} if "qkv.weight" in weights else {})


def _takes(spec: dict, option: str) -> bool:
    name = spec.get("name", "identity")  # one without a name is refused when the layer is made
    return option in inspect.signature(name if isinstance(name, type) else LAYERS.find(name)).parameters


def _sequence(model: nn.Module, name: str, slot: type) -> tuple[int, tuple[int, int] | None]:
    """How many prefix tokens the module sees, and the (H, W) of the map after them."""
    for host in _hosts(model, name):
        if slot is WindowSlot:
            return 0, tuple(host.input_resolution)
        if slot is TokenSlot and hasattr(host, "patch_embed") and hasattr(host, "num_prefix_tokens"):
            grid = getattr(host.patch_embed, "grid_size", None)
            joins_late = type(host).__name__ == "Cait"  # its class token comes after these blocks
            return 0 if joins_late else host.num_prefix_tokens, grid and tuple(grid)
        if slot is MultiheadSlot and hasattr(host, "conv_proj"):
            return host.class_token.shape[1], (host.image_size // host.patch_size,) * 2
        if slot is TransformersSlot and hasattr(host, "embeddings"):
            patches, extra = host.embeddings.patch_embeddings, ("cls_token", "distillation_token", "register_tokens")
            sizes = ((s, s) if isinstance(s, int) else s for s in (patches.image_size, patches.patch_size))
            num_prefix = sum(getattr(host.embeddings, n).shape[1] for n in extra if hasattr(host.embeddings, n))
            return num_prefix, tuple(side // patch for side, patch in zip(*sizes))
    do = "Pass the whole model, with its patch embedding."
    raise bad_value(f"model around {name}", got=type(model).__name__, expected="one that embeds the patches this module sees", do=do)


_NAMES = {"in_proj_weight": "qkv.weight", "in_proj_bias": "qkv.bias", "out_proj.weight": "proj.weight", "out_proj.bias": "proj.bias",
          "o_proj.weight": "proj.weight", "o_proj.bias": "proj.bias"}
_COMMON = ("qkv.weight", "qkv.bias", "proj.weight", "proj.bias", "relative_bias.table")  # of the same meaning in every layer that has them


def _weights(old: nn.Module) -> dict[str, tuple[Tensor, list[str]]]:
    """Weights under the names that layers give them, and the names they have in the old module."""
    params = dict(old.named_parameters())
    found = {}
    for kind in ("weight", "bias"):
        names = [f"{part}_proj.{kind}" for part in "qkv"]
        if all(n in params for n in names):
            found[f"qkv.{kind}"] = torch.cat([params.pop(n).detach() for n in names]), names
    for name, param in params.items():
        if name == "relative_position_bias_table":  # of Swin: (offsets, h)
            param, own = param.T.unflatten(1, [2 * side - 1 for side in old.window_size]), "relative_bias.table"
        else:
            own = _NAMES.get(name, _bare(name))
        found[own] = param, [name]
    return found


def _bare(name: str) -> str:
    """A parameter's name in its layer, or in the attention of prefix tokens beside it."""
    return name.removeprefix("layer.").removeprefix("prefix.")


@torch.no_grad()
def _inherit(new: nn.Module, old: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Copy what fits, frozen where it was; its names in the new module, and those of the old one that are left over."""
    weights, params = _weights(old), dict(old.named_parameters())
    alike = type(_core(old)) is type(_core(new))
    shapes = {n: tensor.shape for n, (tensor, _) in weights.items() if alike or n in _COMMON}
    fits = {n: p for n, p in new.named_parameters() if shapes.get(_bare(n)) == p.shape}
    if not alike and not any(_bare(n) == "qkv.weight" for n in fits):  # an output projection alone would have another meaning
        fits = {}
    for name, param in fits.items():
        tensor, names = weights[_bare(name)]
        param.copy_(tensor)
        param.requires_grad_(any(params[n].requires_grad for n in names))
    used = {n for name in fits for n in weights[_bare(name)][1]}
    return tuple(fits), tuple(n for n in params if n not in used)


def _note(model: nn.Module, name: str, spec: dict) -> None:
    """Write the layer into the config of the layerzoo model that holds it, so that the config builds the model as it is now."""
    host = next((m for m in _hosts(model, name) if isinstance(m, Model)), None)
    if host is None:
        return
    *stage, block = (int(part) for part in name.split(".") if part.isdigit())
    layers = host.config["layer"]
    if isinstance(host, Pyramid):
        layers = list(layers) if isinstance(layers, list) else [layers] * len(host.config["depths"])
        layers[stage[-1]] = _listed(layers[stage[-1]], host.config["depths"][stage[-1]], block, spec)
    else:
        layers = _listed(layers, host.config["depth"], block, spec)
    host.config = host.config | {"layer": layers}


def _listed(layers: str | dict | type | list, depth: int, block: int, spec: dict) -> dict | list:
    """The layers of `depth` blocks with that of one replaced; one entry if they are equal."""
    layers = layers if isinstance(layers, list) else [layers]
    layers = [layers[i % len(layers)] for i in range(depth)]
    old = layers[block]
    layers[block] = spec | {"block": old["block"]} if isinstance(old, dict) and "block" in old else spec
    return layers[0] if all(one == layers[0] for one in layers) else layers
