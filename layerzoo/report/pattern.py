"""Which position sees which: the mixing matrix of any layer, linearised at an input, and its picture."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from layerzoo.errors import bad_value
from layerzoo.registry import DOWNSAMPLES, LAYERS

GRID, DIM = (12, 12), 32
DECADES = 3  # of influence that the picture tells apart


def effective_matrix(layer: nn.Module, x: Tensor, probes: int | None = None) -> Tensor:
    """(M, N): |d y_i / d x_j| / sqrt(C), the Frobenius norm over channels, for output position i and input position j, row by row.

    If every channel is mixed alike, y = A x, this is |A|. Any module of one input whose samples do not mix will do. The derivative is that of
    the module in eval mode at x, so what reaches an output through attention weights counts as well as what is averaged.

    Args:
        layer: the module.
        x: one map (1, C, H, W), or tokens (1, N, C).
        probes: random directions of the output channels to average over; None = every channel, exactly.
    Raises:
        ValueError: for an x of more than one sample.
    """
    if x.ndim not in (3, 4) or x.shape[0] != 1:
        raise bad_value("x", got=tuple(x.shape), expected="one map (1, C, H, W) or (1, N, C)", do="Pass one sample.")
    training = [m for m in layer.modules() if m.training]
    layer.eval()
    try:
        with torch.no_grad():
            count = _positions(layer(x)).shape[1]
        copies = x.detach().expand(count, *x.shape[1:]).clone().requires_grad_()
        own = _positions(layer(copies)).diagonal(dim1=0, dim2=1)  # (C', M): position i of copy i
        directions = torch.eye(len(own)).to(own) if probes is None else torch.randn(probes, len(own)).to(own) * probes**-0.5
        total = sum(
            _positions(torch.autograd.grad((u @ own).sum(), copies, retain_graph=True)[0]).square().sum(-1) for u in directions)
    finally:
        for m in training:
            m.training = True
    return (total / x.shape[1 if x.ndim == 4 else 2]).sqrt()


def pattern(name: str, grid: tuple[int, int] = GRID, dim: int = DIM) -> Tensor:
    """(M, N): `effective_matrix` of a freshly initialised layer or downsample of the zoo at a random map.

    Raises:
        ValueError: for an unknown name.
    """
    torch.manual_seed(0)
    defaults = {"grid": grid, "num_heads": 4}
    layer = DOWNSAMPLES.create(name, dim, dim, defaults=defaults) if name in DOWNSAMPLES.names() else LAYERS.create(name, dim, defaults=defaults)
    return effective_matrix(layer, torch.randn(1, dim, *grid), probes=8)


def draw_pattern(name: str, path: Path, grid: tuple[int, int] = GRID, dim: int = DIM) -> None:
    """The mixing matrix beside what three outputs see of the map, in decades of the largest influence."""
    from matplotlib.figure import Figure

    matrix = pattern(name, grid, dim)
    shades = (matrix / matrix.max()).clamp(min=1e-12).log10()
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(3, 1))
    style = {"cmap": "magma", "vmin": -DECADES, "vmax": 0, "interpolation": "nearest"}
    axes = left.subplots()
    image = axes.imshow(shades, aspect="auto" if len(shades) != shades.shape[1] else "equal", **style)
    axes.set(title=name, xlabel=f"input position of {grid[0]}x{grid[1]}, row by row", ylabel="output position")
    left.colorbar(image, ax=axes, label="log10 of influence, 0 = largest", shrink=0.8)
    width = round((len(shades) * grid[1] / grid[0]) ** 0.5)
    places = [0, len(shades) // width // 2 * width + width // 2, len(shades) - 1]
    for axis, place, where in zip(right.subplots(3, 1), places, ("first", "middle", "last")):
        axis.imshow(shades[place].unflatten(0, grid), **style)
        axis.set_title(f"{where} output", fontsize=8)
        axis.set_axis_off()
    figure.savefig(path, dpi=100)


def _positions(y: Tensor) -> Tensor:
    """Maps (B, C, H, W) as (B, H W, C); tokens as they are."""
    return y.flatten(2).mT if y.ndim == 4 else y
