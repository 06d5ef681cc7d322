"""One picture of many layers: how much each place of a map weighs in the output at its centre."""

from __future__ import annotations

import argparse
import inspect

import torch
from torch import Tensor

from layerzoo.layers.base import Layer
from layerzoo.registry import LAYERS


def influence(layer: Layer, grid: tuple[int, int], probes: int = 16) -> Tensor:
    """(H, W): root mean square over channels of d y(centre) / d x(place), by random probes of the output channels."""
    torch.manual_seed(0)
    x = torch.randn(1, layer.dim, *grid, requires_grad=True)
    centre = layer.eval()(x)[0, :, grid[0] // 2, grid[1] // 2]
    total = torch.zeros(grid)
    for _ in range(probes):
        total += torch.autograd.grad(centre @ torch.randn(layer.dim), x, retain_graph=True)[0][0].square().mean(0)
    return (total / probes).sqrt()


def draw(path: str, grid: tuple[int, int] = (16, 16), dim: int = 32) -> None:
    """Draw the influence map of every layer, freshly initialised, into an image file."""
    import matplotlib.pyplot as plt

    names = LAYERS.names()
    columns = 12
    rows = -(-len(names) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.6 * columns, 2.0 * rows), layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, name in zip(axes.flat, names):
        torch.manual_seed(0)
        layer = LAYERS.create(name, dim, defaults={"grid": grid, "num_heads": 4})
        image = influence(layer, grid)
        axis.imshow((image / image.max()).sqrt(), cmap="magma", vmin=0, vmax=1)
        axis.set_title(f"{name}\n{LAYERS.card(name).family}", fontsize=7)
    figure.suptitle("What the centre of a 16x16 map sees through each layer at initialisation (brighter = more)", fontsize=11)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=inspect.getdoc(draw))
    parser.add_argument("path")
    draw(parser.parse_args().path)
