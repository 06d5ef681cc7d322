"""Fold what is one linear map in eval mode into one: re-parametrised branches, and batch norms after convolutions."""

from __future__ import annotations

import copy
import inspect
from collections import Counter

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from layerzoo.errors import bad_value

_KINDS = {(nn.Conv1d, nn.BatchNorm1d), (nn.Conv2d, nn.BatchNorm2d), (nn.Conv3d, nn.BatchNorm3d), (nn.Linear, nn.BatchNorm1d)}


def fuse(model: nn.Module) -> nn.Module:
    """A copy of `model` for inference, the same function with fewer operations; `model` stays as it is.

    Every module that has a method `fuse()`, such as RepVGG's, is replaced by what that returns. Every batch norm that is given the output
    of a convolution or linear layer, and alone is given it, goes into its weights. Which those are is read from the `forward` of the
    module that holds both, traced by torch.fx with its parts closed; a `forward` that cannot be traced, or that takes more than one
    argument, keeps its batch norms, and so do parts that are shared, hooked or subclassed.

    A linear layer's BatchNorm1d is taken to see (B, C). Of (B, N, C) it would normalise the N, which no weights of the layer can.

    Args:
        model: any module in eval mode. Save a layerzoo model before this: its config describes the model that is not fused.
    Raises:
        ValueError: for a model in training mode, where a batch norm is no fixed scale and shift.
    """
    if any(module.training for module in model.modules()):
        raise bad_value("model to fuse", got="a model in training mode", expected="one in eval mode", do="Call model.eval() first.")
    model = _fuse_branches(copy.deepcopy(model), {})
    uses = Counter(id(child) for module in model.modules() for child in module._modules.values())
    for holder in list(model.modules()):
        for first, norm in _pairs(holder):
            linear, bn = getattr(holder, first), getattr(holder, norm)
            if uses[id(linear)] == uses[id(bn)] == 1 and _can_fuse(linear, bn):
                linear.weight, linear.bias = fuse_conv_bn_weights(
                    linear.weight, linear.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias)  # a linear layer's as well
                setattr(holder, norm, nn.Identity())
    return model


def _fuse_branches(module: nn.Module, done: dict[nn.Module, nn.Module]) -> nn.Module:
    """The module, or what its own method `fuse` makes of it, and the same for its parts."""
    if module not in done:
        if callable(getattr(type(module), "fuse", None)):
            fused = module.fuse()
            done[module] = module if fused is None else fused  # some change themselves instead
        else:
            done[module] = module
            for name, child in list(module._modules.items()):
                if child is not None:
                    setattr(module, name, _fuse_branches(child, done))
    return done[module]


class _Closed(fx.Tracer):
    """Follows one `forward`, in which every part of the module is one step."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _pairs(holder: nn.Module) -> list[tuple[str, str]]:
    """Names of children (a, b) where b is called on the output of a, each once, and nothing else reads that output or their weights."""
    kinds = {kind for _, kind in _KINDS}
    if not any(type(child) in kinds for child in holder.children()) or len(inspect.signature(holder.forward).parameters) != 1:
        return []
    try:
        nodes = _Closed().trace(holder).nodes
    except Exception:  # whatever a stranger's forward does to a value that stands for any input
        return []
    calls = {node: node.target for node in nodes if node.op == "call_module"}
    count = Counter(calls.values())
    read = {node.target.split(".")[0] for node in nodes if node.op == "get_attr"}
    firsts = {name: node.args[0] for node, name in calls.items() if node.args and node.args[0] in calls}
    pairs = [(calls[first], name) for name, first in firsts.items() if len(first.users) == 1]
    return [p for p in pairs if all("." not in n and count[n] == 1 and n not in read for n in p)]


def _can_fuse(linear: nn.Module, norm: nn.Module) -> bool:
    if (type(linear), type(norm)) not in _KINDS or norm.running_mean is None or linear.weight.dtype != norm.running_mean.dtype:
        return False
    hooked = any(hooks for module in (linear, norm) for hooks in (module._forward_hooks, module._forward_pre_hooks))
    return not hooked and linear.weight.shape[0] == norm.num_features
