"""What layers cost as maps grow, forward and backward, beside exact attention: `layerzoo bench layers`."""

from __future__ import annotations

import ctypes
import math
import random
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from layerzoo.downsample.base import squarest
from layerzoo.errors import bad_value
from layerzoo.registry import LAYERS
from layerzoo.report.cost import LiveBytes, cost
from layerzoo.report.measured import EXACT, Measurement, slope, summary, write_csv

FEWEST_SECONDS = 0.05  # of work in a timed turn; shorter steps are repeated
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # parameters of glibc's mallopt


def bench_layers(
    names: list[str], lengths: list[int], *, dim: int = 64, batch: int = 1, rounds: int = 5, most_gib: float = 4.0,
    tell: Callable[[str], None] = print,
) -> list[Measurement]:
    """Measure layers in turns that alternate, in shuffled order, at each length.

    Args:
        names: of layers; exact attention is measured too.
        lengths: numbers of positions; each becomes the squarest map.
        dim: channels, of four heads.
        batch: samples.
        rounds: timed turns of each layer, after one that is not timed.
        most_gib: a layer whose forward pass keeps more is left out at that length, and `tell` is told.
        tell: takes a line about what is left out, and one per length.
    Raises:
        ValueError: for an unknown name and lengths below 1.
    """
    for name in names:
        LAYERS.path(name)
    if not lengths or min(lengths) < 1:
        raise bad_value("lengths", got=lengths, expected="whole numbers >= 1 of positions", do="Choose some such as 1024,4096,16384.")
    _keep_memory()
    found = []
    for length in sorted(lengths):
        steps, parameters = {}, {}
        for name in dict.fromkeys([EXACT, *names]):
            layer, shape = _layer_for(name, length, dim, batch)
            gib = cost(layer, shape).activation_bytes / 2**30
            if gib > most_gib:
                tell(f"{name} at {length} left out: its activations take {gib:.1f} GiB, more than {most_gib:g}")
            else:
                steps[name], parameters[name] = step_of(layer, shape), sum(p.numel() for p in layer.parameters())
        for name, taken in (times := alternate(steps, rounds)).items():
            ratios = [t / exact for t, exact in zip(taken, times[EXACT])]
            low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if rounds > 1 else ratios * 3
            found.append(Measurement(name, parameters[name], length, statistics.median(taken) * 1e3, middle, low, high, peak_mib(steps[name])))
        tell(f"{length} positions: {len(steps)} layers measured")
    return found


def bench_into(folder: Path, names: list[str], lengths: list[int], **options: int) -> list[dict]:
    """`bench_layers`, written to layers.csv and layers.png in a folder that is made; returns the rows of the summary."""
    found = bench_layers(names, lengths, **options)
    folder.mkdir()
    write_csv(found, folder / "layers.csv")
    draw(found, folder / "layers.png")
    return summary(found)


def step_of(layer: nn.Module, shape: tuple[int, ...], memory_format: torch.memory_format = torch.channels_last) -> Callable[[], None]:
    """A forward and a backward pass of `layer` on random input of `shape`, gradients of input and parameters included; maps have the format."""
    x = torch.randn(shape)
    x = (x.contiguous(memory_format=memory_format) if x.ndim == 4 else x).requires_grad_()
    gradient, parameters = torch.randn_like(x), list(layer.parameters())

    def step() -> None:
        x.grad = None
        for p in parameters:
            p.grad = None
        layer(x).backward(gradient)

    return step


def alternate(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each step, one entry per round; the order is drawn anew each round.

    On one thread they are the processor's, which others that run on the machine disturb least.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    repeats = {}
    for name, step in steps.items():
        step()
        start = clock()
        step()
        repeats[name] = max(1, math.ceil(FEWEST_SECONDS / max(clock() - start, 1e-9)))
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name in random.sample(list(steps), len(steps)):
            start = clock()
            for _ in range(repeats[name]):
                steps[name]()
            times[name].append((clock() - start) / repeats[name])
    return times


def peak_mib(step: Callable[[], None]) -> float:
    """Most MiB that one step has alive at once, beside what was there before."""
    with LiveBytes() as live:
        step()
    return live.peak / 2**20


def draw(found: list[Measurement], path: Path) -> None:
    """Time and memory against N, both logarithmic, the fitted exponent beside each name; exact attention is drawn thick."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7), layout="constrained")
    names = list(dict.fromkeys(m.name for m in found))
    for axes, what, unit in zip(figure.subplots(1, 2), ("ms", "mib"), ("milliseconds", "MiB")):
        for i, name in enumerate(names):
            lengths, values = zip(*((m.length, getattr(m, what)) for m in found if m.name == name))
            style = {"color": "black", "linewidth": 3} if name == EXACT else {"color": _COLOURS[i % 10], "linestyle": _STYLES[i // 10 % 4], "linewidth": 1}
            axes.plot(lengths, values, marker=".", label=f"{name} N^{slope(lengths, values):.2f}", **style)
        axes.set(xscale="log", yscale="log", xlabel="positions N", ylabel=f"{unit}, forward and backward")
        axes.legend(fontsize=6, ncols=2)
    figure.savefig(path, dpi=110)


def _keep_memory() -> None:
    """Have the C library keep what it is given back: blocks above 32 MiB would come from the system page by page in every step, which makes
    what is linear in N grow threefold where it doubles. It does so in this process from now on; other C libraries are left as they are."""
    with suppress(AttributeError, OSError):
        for parameter in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
            ctypes.CDLL(None).mallopt(parameter, 2**31 - 1)


_COLOURS = [f"C{i}" for i in range(10)]
_STYLES = ["-", "--", ":", "-."]


def _layer_for(name: str, length: int, dim: int, batch: int) -> tuple[nn.Module, tuple[int, ...]]:
    grid = squarest(length)
    torch.manual_seed(0)
    return LAYERS.create(name, dim, defaults={"grid": grid, "num_heads": 4}), (batch, dim, *grid)
