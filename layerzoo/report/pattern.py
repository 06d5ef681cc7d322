"""Which position sees which: the mixing matrix of any layer, linearised at an input, what it says, and its picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Mixing:
    """What a mixing matrix says of a layer.

    Fields:
        receptive_field: positions that hold nine tenths of the influence on an output, mean over outputs.
        distance: how far an output looks, in positions: mean over outputs of the distances of all inputs, weighed by influence.
        rank: of the matrix: the exponential of the entropy of its singular values' shares (effective rank, between 1 and N).
        entropy: of an output's shares of influence over log N, mean over outputs: 0 = one input, 1 = all alike.
    """

    receptive_field: float
    distance: float
    rank: float
    entropy: float


def mixing(matrix: Tensor, grid: tuple[int, int]) -> Mixing:
    """Receptive field, distance, rank and entropy of an influence matrix (N, N) over a map of `grid` = (H, W).

    Outputs that nothing influences are left out.

    Raises:
        ValueError: for a matrix that is not (H W, H W), or is zero.
    """
    count = grid[0] * grid[1]
    if matrix.shape != (count, count) or not matrix.any():
        got = f"{tuple(matrix.shape)}{'' if matrix.any() else ', all zeros'}"
        raise bad_value("matrix", got=got, expected=f"influence ({count}, {count}) for a map of {grid}", do="Pass that of `effective_matrix` and its grid.")
    matrix = matrix.abs().double()
    seen = matrix.sum(1) > 0
    share = matrix[seen] / matrix[seen].sum(1, keepdim=True)
    place = torch.cartesian_prod(*(torch.arange(n, dtype=torch.double) for n in grid)).view(count, 2)
    held = share.sort(1, descending=True).values.cumsum(1)
    values = torch.linalg.svdvals(matrix)
    return Mixing(
        receptive_field=(1 + (held < 0.9 - 1e-9).sum(1)).double().mean().item(), distance=(share * torch.cdist(place, place)[seen]).sum(1).mean().item(),
        rank=_entropy(values / values.sum(), 0).exp().item(), entropy=(_entropy(share, 1) / max(math.log(count), 1e-9)).mean().item())


def _entropy(share: Tensor, axis: int) -> Tensor:
    return torch.special.entr(share).sum(axis)


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
    axes.set(title=f"{name}{_summary(matrix, grid)}", xlabel=f"input position of {grid[0]}x{grid[1]}, row by row", ylabel="output position")
    left.colorbar(image, ax=axes, label="log10 of influence, 0 = largest", shrink=0.8)
    width = round((len(shades) * grid[1] / grid[0]) ** 0.5)
    places = [0, len(shades) // width // 2 * width + width // 2, len(shades) - 1]
    for axis, place, where in zip(right.subplots(3, 1), places, ("first", "middle", "last")):
        axis.imshow(shades[place].unflatten(0, grid), **style)
        axis.set_title(f"{where} output", fontsize=8)
        axis.set_axis_off()
    figure.savefig(path, dpi=100)


def _summary(matrix: Tensor, grid: tuple[int, int]) -> str:
    """The numbers of `mixing` on a line of their own, where the map keeps its size."""
    if matrix.shape[0] != matrix.shape[1] or not matrix.any():
        return ""
    m = mixing(matrix, grid)
    return f"\nsees {m.receptive_field:.1f} positions, {m.distance:.1f} away; rank {m.rank:.0f}, entropy {m.entropy:.2f}"


def _positions(y: Tensor) -> Tensor:
    """Maps (B, C, H, W) as (B, H W, C); tokens as they are."""
    return y.flatten(2).mT if y.ndim == 4 else y
