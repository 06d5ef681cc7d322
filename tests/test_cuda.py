"""On a GPU every layer computes what it computes on the CPU. Skipped where there is none."""

import copy

import pytest
import torch

from layerzoo.registry import DOWNSAMPLES, FFNS, LAYERS
from layerzoo.testing_claims import build, close

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU of CUDA here")
ROOMS = [(room, name) for room in (LAYERS, FFNS, DOWNSAMPLES) for name in room.names()]
NAMES = [name for _, name in ROOMS]


def passes(layer, x, weight):
    leaf = x.clone().requires_grad_()
    y = layer(leaf)
    wanted = (leaf, *layer.parameters())
    return [y, *torch.autograd.grad((y * weight).sum(), wanted, allow_unused=True, materialize_grads=True)]


@pytest.mark.parametrize("room, name", ROOMS, ids=NAMES)
def test_a_gpu_computes_what_the_cpu_does(room, name):
    card = room.card(name)
    for size in ("tiny", "odd"):
        layer = build(room.find(name), card, size)
        x = torch.randn(2, next(iter(card.sizes[size].values())), 6, 7, dtype=torch.double)
        weight = torch.randn_like(layer(x))
        near, far = passes(layer, x, weight), passes(copy.deepcopy(layer).cuda(), x.cuda(), weight.cuda())
        for what, a, b in zip(("output", "gradient of the input", *dict(layer.named_parameters())), far, near):
            close(f"{what} of {name} on the GPU", a.cpu(), b, 1e-7)


@pytest.mark.parametrize("room, name", ROOMS, ids=NAMES)
def test_bfloat16_on_a_gpu_is_finite_and_near(room, name):
    card = room.card(name)
    layer = build(room.find(name), card, "base", noise=0).float().cuda()
    x = torch.randn(2, next(iter(card.sizes["base"].values())), 16, 16, device="cuda").to(memory_format=torch.channels_last).requires_grad_()
    exact = layer(x)
    with torch.autocast("cuda", torch.bfloat16):
        y = layer(x)
    y.float().square().mean().backward()
    assert ((y - exact).norm() / exact.norm()).item() < 0.1
    assert all(p.grad.isfinite().all() for p in (x, *layer.parameters()) if p.grad is not None)
