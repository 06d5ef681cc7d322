"""What the contract costs in attention: mhsa beside the same attention written by hand, forward and backward.

`python -m layerzoo.report.bench_attention`: the two alternate in shuffled rounds of one process, beside the hand-written one
again (the error of measurement); the median of the ratios within each round is printed, with quartiles.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

import torch
from torch import Tensor
from torch.nn import functional as F

import layerzoo as lz

HAND = "by hand"


def by_hand(layer: torch.nn.Module, x: Tensor) -> Tensor:
    """Projections, fused attention and projection, in plain functions, with the weights of `layer`."""
    batch, length, dim = x.shape
    qkv = F.linear(x, layer.qkv.weight, layer.qkv.bias).view(batch, length, 3, layer.num_heads, -1).permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
    return F.linear(y.transpose(1, 2).reshape(batch, length, dim), layer.proj.weight, layer.proj.bias)


def measure(rounds: int, batch: int, length: int, dim: int) -> dict[str, list[float]]:
    """CPU seconds of a forward and backward pass of each variant, one entry per round."""
    layer = lz.create_layer("mhsa", dim=dim, num_heads=4)
    x = torch.randn(batch, length, dim, requires_grad=True)
    variants = {HAND: lambda: by_hand(layer, x), "by hand again": lambda: by_hand(layer, x), "mhsa": lambda: layer(x)}
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name in random.sample(list(variants), len(variants)):
            start = time.process_time()
            variants[name]().sum().backward()
            if turn:
                times[name].append(time.process_time() - start)
    return times


def main() -> None:
    """Print one line per variant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for option, default in {"rounds": 21, "batch": 4, "length": 1024, "dim": 256}.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    torch.set_num_threads(1)
    times = measure(**vars(parser.parse_args()))
    for name, taken in times.items():
        low, middle, high = statistics.quantiles((t / base for t, base in zip(taken, times[HAND])), n=4, method="inclusive")
        print(f"{name:14} {statistics.median(taken) * 1e3:8.1f} ms   ratio {middle:.3f} [{low:.3f}, {high:.3f}]")


if __name__ == "__main__":
    main()
