"""`python sharded_optimizers.py PORT NAME ...`: steps of optimisers on two ranks, in parts and whole; in float64; prints JSON of the largest differences."""

import copy
import json
import os
import sys
from functools import partial

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from timm.optim import muon
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from layerzoo.config import OptimizerConfig
from layerzoo.models import create_model
from layerzoo.tasks import optim
from layerzoo.tasks.optim import create_optimizer
from layerzoo.train.sharded import Sharded, shard


class Whole(Sharded):
    """Gathers on both ranks, where training has rank 0 write and all read."""

    is_global_zero = True

    def __init__(self):
        self._optimizers = []


def weights(model):
    return [(p.full_tensor() if isinstance(p, DTensor) else p).detach().clone() for p in model.parameters()]


def apart(one, other):
    return max((a - b).abs().max().item() for a, b in zip(one, other))


def measure(name, start, mesh):
    """Differences of weights after four steps: in parts from whole, saved and gone on from unbroken, and the end from the start."""
    torch.manual_seed(1)
    x, y = torch.randn(4, 2, 3, 8, 8), torch.arange(8).view(4, 2)
    config, strategy = OptimizerConfig(name, lr=1e-3), Whole()

    def begin(parts, values):
        model = copy.deepcopy(start)
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), values):
                parameter.copy_(value)
        if parts:
            shard(model, mesh)
        optimizer = create_optimizer(model, config)
        return model, optimizer

    def go(model, optimizer, steps):
        for step in steps:
            optimizer.zero_grad()
            F.cross_entropy(model(x[step]), y[step]).backward()
            optimizer.step()

    first = weights(start)
    one, its = begin(False, first)
    go(one, its, range(4))
    two, its = begin(True, first)
    go(two, its, range(2))
    saved, between = copy.deepcopy(strategy._whole(its.state_dict())), weights(two)
    go(two, its, range(2, 4))
    three, its = begin(True, between)
    strategy._optimizers = [its]
    strategy.load_optimizer_state_dict({"optimizer_states": [saved]})
    go(three, its, range(2, 4))
    return apart(weights(two), weights(one)), apart(weights(three), weights(two)), apart(weights(one), first)


def work(rank, port, names):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, RANK=str(rank), WORLD_SIZE="2")
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    muon.zeropower_via_newtonschulz = partial(muon.zeropower_via_newtonschulz, dtype=torch.float64)
    optim.multiplies_bfloat16 = lambda device: True  # so that it is not made float32
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    start = create_model("vit_tiny", layer="mhsa", num_classes=10, img_size=8, options={"depth": 1, "block": {"num_heads": 3}})
    mesh = init_device_mesh("cpu", (2,))
    found = {name: measure(name, start, mesh) for name in names}
    if rank == 0:
        print(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(work, (sys.argv[1], sys.argv[2:]), 2)
