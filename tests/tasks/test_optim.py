"""Parameter groups, optimisers and the learning rate."""

import math
import re

import pytest
import torch
from torch import nn

import layerzoo as lz
from layerzoo.config import OptimizerConfig, ScheduleConfig
from layerzoo.tasks.optim import Schedule, create_optimizer, param_groups


def decaying(model):
    names = {id(p): n for n, p in model.named_parameters()}
    return {names[id(p)]: g["weight_decay"] > 0 for g in param_groups(model, 0.1) for p in g["params"]}


@pytest.mark.parametrize("preset", ["vit_tiny", "swin_micro", "coatnet_micro", "cct_7", "resnet18", "poolformer_micro"])
def test_each_trainable_parameter_is_in_one_group(preset):
    model = lz.create_model(preset, num_classes=10, img_size=32)
    next(model.parameters()).requires_grad_(False)
    grouped = [p for g in param_groups(model, 0.1) for p in g["params"]]
    assert sorted(map(id, grouped)) == sorted(id(p) for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("preset", ["vit_tiny", "swin_micro", "coatnet_micro", "convnext_micro", "cct_7"])
def test_matrices_and_kernels_decay_and_nothing_else(preset):
    model = lz.create_model(preset, num_classes=10, img_size=32)
    kernels = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    decays = decaying(model)
    assert {n for n, decay in decays.items() if decay} == kernels
    assert {"bias", "table", "scale"} & {n.rpartition(".")[2] for n, decay in decays.items() if not decay}


def test_matrices_outside_linear_layers_decay():
    model = nn.Module()
    model.mixing, model.scale = nn.Parameter(torch.zeros(4, 6)), nn.Parameter(torch.zeros(6, 1, 1))
    model.tokens, model.score = nn.Embedding(5, 4), nn.Conv2d(6, 1, 1)
    assert decaying(model) == {"mixing": True, "scale": False, "tokens.weight": False, "score.weight": True, "score.bias": False}


def test_muon_takes_kernels_and_leaves_the_rest_to_adamw():
    model = lz.create_model("swin_micro", num_classes=10, img_size=32, position="learned", stem={"name": "overlap", "stride": 2})
    optimizer = create_optimizer(model, OptimizerConfig("muon", lr=0.01, weight_decay=0.1, options={"nesterov": True}))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    by_muon = {n for n, p in model.named_parameters() if optimizer.state[p]["use_muon"]}
    kernels = {f"{n}.weight": m for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    assert by_muon == {n for n in kernels if not n.startswith("head.")}
    assert all((p != before[n]).any() for n, p in model.named_parameters() if p.grad.any())


def test_muon_leaves_depthwise_kernels_to_adamw():
    conv = nn.Conv2d(8, 8, 3, groups=8)
    optimizer = create_optimizer(conv, OptimizerConfig("muon"))
    conv(torch.randn(1, 8, 5, 5)).sum().backward()
    optimizer.step()
    assert not optimizer.state[conv.weight]["use_muon"]


@pytest.mark.parametrize(("able", "dtype"), [({"avx512_bf16": True}, None), ({"avx2": True}, torch.float32)])
def test_muon_iterates_in_float32_where_bfloat16_is_emulated(monkeypatch, able, dtype):
    from timm.optim import muon

    taken, given = [], muon.zeropower_via_newtonschulz

    def newton_schulz(*args, **options):
        taken.append(options.get("dtype"))
        return given(*args, **options)

    newton_schulz.__name__ = given.__name__
    monkeypatch.setattr(muon, given.__name__, newton_schulz)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    linear = nn.Linear(16, 12)
    optimizer = create_optimizer(linear, OptimizerConfig("muon"))
    linear(torch.randn(2, 16)).sum().backward()
    optimizer.step()
    assert taken == [dtype] and muon.zeropower_via_newtonschulz is newton_schulz  # others' Muon stays as it was


def test_options_reach_the_optimiser():
    optimizer = create_optimizer(nn.Linear(4, 4), OptimizerConfig("sgd", lr=0.3, momentum=0.7, weight_decay=0.01, options={"nesterov": False}))
    assert isinstance(optimizer, torch.optim.SGD)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["nesterov"]) == (0.3, 0.7, False)
    assert sorted(g["weight_decay"] for g in optimizer.param_groups) == [0.0, 0.01]


@pytest.mark.parametrize("name, options, start, end", [
    ("adamwx", {}, "optimizer: got 'adamwx', expected a known name such as adamw", "timm.optim.list_optimizers() lists all."),
    ("adamw", {"beta": 1}, "option of adamw: got 'beta', expected a known name such as betas", "help(timm.optim.get_optimizer_class('adamw')) lists all."),
])
def test_refused(name, options, start, end):
    with pytest.raises(ValueError, match=f"^{re.escape(start)}.*{re.escape(end)}$"):
        create_optimizer(nn.Linear(2, 2), OptimizerConfig(name, options=options))


def rates(total_epochs, **options):
    schedule = Schedule(ScheduleConfig(**options), peak=2.0, steps_per_epoch=4, max_epochs=total_epochs)
    return [schedule(step) for step in range(4 * total_epochs + 1)]


def test_cosine():
    expected = [1 + math.cos(math.pi * step / 8) for step in range(9)]
    assert rates(2, name="cosine") == pytest.approx(expected)


def test_triangular():
    assert rates(2, name="linear", warmup_epochs=0.5, start=0.2, end=0.1) == pytest.approx([0.4, 1.2, 2.0, 1.7, 1.4, 1.1, 0.8, 0.5, 0.2])


def test_constant_with_warmup():
    assert rates(2, name="constant", warmup_epochs=1) == pytest.approx([0, 0.5, 1, 1.5, 2, 2, 2, 2, 2])


def test_warmup_may_take_all_of_training():
    assert rates(1, name="linear", warmup_epochs=1) == pytest.approx([0, 0.5, 1, 1.5, 2])


def test_longer_warmup_is_refused():
    with pytest.raises(ValueError, match=re.escape("task.schedule.warmup_epochs: got 3, expected 0 to trainer.max_epochs = 2")):
        rates(2, warmup_epochs=3)
