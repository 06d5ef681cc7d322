"""Optimiser and learning rate of every task: which parameters decay, and the rate at each step."""

from __future__ import annotations

import inspect
import math
from functools import partial

import torch
from torch import nn

from layerzoo.config import OptimizerConfig, ScheduleConfig
from layerzoo.errors import bad_value, unknown_name
from layerzoo.positions.base import Position


def param_groups(model: nn.Module, weight_decay: float, *, hybrid: bool = False) -> list[dict]:
    """Trainable parameters as optimiser groups: matrices and kernels decay; biases, norms, scales and tables do not.

    A parameter with one side above 1 is a vector, unless it is the weight of a linear layer or a convolution. Tables are
    the parameters of position encodings and embeddings.

    Args:
        model: any module.
        weight_decay: of the group that decays.
        hybrid: mark tables and the classifier (`model.head`) with use_fallback=True, by which timm's Muon leaves them to
            AdamW, as it leaves vectors and depthwise kernels by their shape.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            path, _, leaf = name.rpartition(".")
            owner = model.get_submodule(path)
            table = isinstance(owner, (Position, nn.Embedding))
            kernel = isinstance(owner, (nn.Linear, nn.modules.conv._ConvNd)) or sum(side > 1 for side in parameter.shape) > 1
            decays = weight_decay > 0 and kernel and not table and leaf != "bias"
            fallback = hybrid and (table or path.split(".")[0] == "head")
            groups.setdefault((decays, fallback), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if decays else 0.0} | ({"use_fallback": True} if fallback else {})
        for (decays, fallback), parameters in groups.items()]


def create_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The timm optimiser of `config` over `param_groups(model)`.

    Raises:
        ValueError: for a name timm does not list, or an option the optimiser does not take.
    """
    from timm.optim import Muon, create_optimizer_v2, get_optimizer_class, list_optimizers

    if config.name not in list_optimizers():
        raise unknown_name("optimizer", config.name, list_optimizers(), "timm.optim.list_optimizers()")
    kind = get_optimizer_class(config.name, bind_defaults=False)
    taken = inspect.signature(kind).parameters
    for option in config.options:
        if option not in taken:
            raise unknown_name(f"option of {config.name}", option, taken, f"help(timm.optim.get_optimizer_class({config.name!r}))")
    groups = param_groups(model, config.weight_decay, hybrid=issubclass(kind, Muon))
    optimizer = create_optimizer_v2(groups, opt=config.name, lr=config.lr, momentum=config.momentum, **config.options)
    if issubclass(kind, Muon) and not multiplies_bfloat16(next(model.parameters()).device):
        _iterate_in_float32(optimizer)
    return optimizer


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16; where it is emulated, float32 is ten times as fast."""
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def _iterate_in_float32(optimizer: torch.optim.Optimizer) -> None:
    """During its steps, run Muon's Newton-Schulz iteration in float32: timm has no option for it and fixes bfloat16."""
    from timm.optim import muon

    given = muon.zeropower_via_newtonschulz
    exact = partial(given, dtype=torch.float32)
    optimizer.register_step_pre_hook(lambda optimizer, args, kwargs: setattr(muon, given.__name__, exact))
    optimizer.register_step_post_hook(lambda optimizer, args, kwargs: setattr(muon, given.__name__, given))


class Schedule:
    """Learning rate as a pure function of the step, so that a resumed run needs no state.

    Linear from `start` at step 0 to the peak at the end of warm-up, then cosine, linear or constant to `end`, which is
    reached one step after the last. Warm-up and linear decay make the triangular schedule.

    Args:
        config: shape of the schedule.
        peak: learning rate at the end of warm-up.
        steps_per_epoch: optimiser steps.
        max_epochs: length of training.
    Raises:
        ValueError: if warm-up is longer than training.
    """

    def __init__(self, config: ScheduleConfig, peak: float, steps_per_epoch: int, max_epochs: int):
        if not 0 <= config.warmup_epochs <= max_epochs:
            raise bad_value(
                "task.schedule.warmup_epochs", got=config.warmup_epochs, expected=f"0 to trainer.max_epochs = {max_epochs}",
                do="Shorten the warm-up or train longer.")
        self.config, self.peak = config, peak
        self.warmup, self.total = round(config.warmup_epochs * steps_per_epoch), max_epochs * steps_per_epoch

    def __call__(self, step: int) -> float:
        """The rate for optimiser step `step`, counted from 0."""
        start, end, name = self.config.start, self.config.end, self.config.name
        if step < self.warmup:
            return self.peak * (start + (1 - start) * step / self.warmup)
        done = min(1.0, (step - self.warmup) / max(1, self.total - self.warmup))
        left = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}[name]
        return self.peak * (end + (1 - end) * left)
