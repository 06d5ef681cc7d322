"""Figures of arXiv 1911.03584 from any checkpoint: where heads look, layer by layer and over training, and what a place sees."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from layerzoo.errors import bad_value
from layerzoo.layers.base import Layer, map_to_tokens
from layerzoo.layers.hybrid.base import WideHeads
from layerzoo.positions.quadratic import Quadratic
from layerzoo.report.pattern import effective_matrix

PROBES = 8


@torch.no_grad()
def head_weights(layer: WideHeads, x: Tensor, query: tuple[int, int]) -> Tensor:
    """(h, H, W): the weights of each head for one query, mean over the maps x (B, C, H, W)."""
    grid = tuple(x.shape[2:])
    place = query[0] * grid[1] + query[1]
    scores = layer.position.bias(grid)[:, place]
    if getattr(layer, "query", None) is not None:
        tokens = map_to_tokens(x)
        k = layer.key(tokens).unflatten(2, (layer.num_heads, -1))
        q = layer.query(tokens[:, place]).unflatten(1, (layer.num_heads, -1))
        scores = scores + torch.einsum("bhc,bnhc->bhn", q, k) * layer.dim**-0.5
    return scores.view(-1, layer.num_heads, scores.shape[-1]).softmax(-1).mean(0).unflatten(1, grid)


def attention_maps(model: nn.Module, images: Tensor, query: tuple[float, float] = (0.5, 0.5)) -> dict[str, Tensor]:
    """What the layers of a model see from one place.

    Args:
        model: of the zoo; any module that holds layers.
        images: (B, in_chans, H, W), normalised as the model was trained.
        query: the place, as shares of the height and width of each layer's map.
    Returns:
        {name: (h or 1, H, W)}: the weights of each head where they are known, mean over images; for any other layer the influence of each
        place on the query's output at the first image, in shares of their sum.
    Raises:
        ValueError: for a query outside [0, 1) and a model without layers.
    """
    if not all(0 <= part < 1 for part in query):
        raise bad_value("query", got=query, expected="(row, column) as shares in [0, 1)", do="Use (0.5, 0.5) for the middle.")
    outer = {}
    for name, m in model.named_modules():
        if isinstance(m, Layer) and not type(m).__module__.startswith("layerzoo.ffn") and not any(name.startswith(f"{other}.") for other in outer):
            outer[name] = m
    if not outer:
        raise bad_value("model", got=type(model).__name__, expected="a model that holds layers of the zoo", do="Pass a checkpoint of layerzoo.")
    inputs: dict[str, Tensor] = {}
    hooks = [m.register_forward_pre_hook(lambda m, given, name=name: inputs.__setitem__(name, given[0].detach())) for name, m in outer.items()]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            model(images)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return {name: _seen(outer[name], x, query) for name, x in inputs.items() if x.ndim == 4}


def _seen(layer: Layer, x: Tensor, query: tuple[float, float]) -> Tensor:
    grid = tuple(x.shape[2:])
    place = tuple(int(part * side) for part, side in zip(query, grid))
    if isinstance(layer, WideHeads):
        return head_weights(layer, x, place)
    row = effective_matrix(layer, x[:1], PROBES)[place[0] * grid[1] + place[1]]
    return (row / row.sum().clamp(min=1e-12)).unflatten(0, grid)[None]


def draw_attention(model: nn.Module, images: Tensor, path: Path, query: tuple[float, float] = (0.5, 0.5), history: Path | None = None) -> None:
    """Draw `attention_maps`, one row per layer; before them, for quadratic encodings, the centres with the shapes that hold half and nine tenths.

    Args:
        model, images, query: as in `attention_maps`.
        path: the picture.
        history: centers.jsonl of the run, whose paths are drawn as well.
    """
    maps = attention_maps(model, images, query)
    paths = _paths(history) if history is not None else {}
    positions = {name: m.position for name, m in model.named_modules() if name in maps and isinstance(getattr(m, "position", None), Quadratic)}
    columns = max(len(m) for m in maps.values()) + bool(positions)
    figure = Figure(figsize=(1.3 * columns + 1, 1.45 * len(maps)), layout="constrained")
    axes = figure.subplots(len(maps), columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for row, (name, weights) in zip(axes, maps.items()):
        if name in positions:
            _draw_centers(row[0], positions[name], paths.get(f"{name}.position", []))
        for axis, weight in zip(row[bool(positions):], weights):
            axis.imshow(weight.sqrt(), cmap="magma", vmin=0)
            axis.plot(int(query[1] * weight.shape[1]), int(query[0] * weight.shape[0]), "s", color="cyan", markersize=3, fillstyle="none")
        row[0].set_title(name, fontsize=7, loc="left")
    figure.savefig(path, dpi=120)


@torch.no_grad()
def _draw_centers(axis: Axes, position: Quadratic, past: list[Tensor]) -> None:
    """Centres in (column, row) around the query at 0, with ellipses of the Gaussians."""
    centers = position.centers.cpu()
    spreads = position.spreads.cpu()
    matrices = spreads if spreads.ndim == 3 else spreads[:, None, None] * torch.eye(2)
    circle = torch.linspace(0, 2 * math.pi, 60)
    circle = torch.stack([circle.sin(), circle.cos()])
    for h, (center, matrix) in enumerate(zip(centers, matrices)):
        for share, width in ((0.5, 1.0), (0.9, 0.5)):
            y, x = center[:, None] + math.sqrt(-2 * math.log(1 - share)) * torch.linalg.pinv(matrix) @ circle
            axis.plot(x, y, color=f"C{h % 10}", linewidth=width)
        if past:
            y, x = torch.stack([p[h] for p in past]).T
            axis.plot(x, y, color=f"C{h % 10}", linewidth=0.5, linestyle=":")
        axis.plot(center[1], center[0], ".", color=f"C{h % 10}")
    axis.plot(0, 0, "s", color="black", markersize=3, fillstyle="none")
    far = 1.2 * max(2.0, centers.abs().max().item())
    axis.set(xlim=(-far, far), ylim=(far, -far), aspect="equal", xticks=[], yticks=[])
    axis.set_axis_on()


def _paths(history: Path) -> dict[str, list[Tensor]]:
    """Centres over epochs by name; of an epoch that stands twice, the last."""
    rows = {row["epoch"]: row["centers"] for row in map(json.loads, history.read_text(encoding="utf-8").splitlines())}
    names = next(iter(rows.values()), {})
    return {name: [torch.tensor(rows[epoch][name]) for epoch in sorted(rows)] for name in names}


def draw_sharpness(path: Path, kernel_size: int = 3, dim: int = 8, side: int = 16) -> list[dict]:
    """How far attention is from the convolution it stands for, against alpha: the picture, and its rows (alpha and the error in each dtype)."""
    from layerzoo.models.convert import conv_to_attention, sharpness

    torch.manual_seed(0)
    conv, x = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2), torch.randn(4, dim, side, side)
    rows, alphas = [], (0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 15.0, 18.0, 25.0, 40.0)
    with torch.no_grad():
        expected = copy.deepcopy(conv).double()(x.double())
        for alpha in alphas:
            errors = {}
            for dtype in (torch.float64, torch.float32, torch.bfloat16):
                y = conv_to_attention(copy.deepcopy(conv).to(dtype), alpha)(x.to(dtype))
                errors[str(dtype).removeprefix("torch.")] = (y.double() - expected).abs().max().item()
            rows.append({"alpha": alpha, **errors})
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for i, name in enumerate(list(rows[0])[1:]):
        axis.plot(alphas, [r[name] for r in rows], marker=".", label=name, color=f"C{i}")
        axis.axvline(sharpness(getattr(torch, name)), color=f"C{i}", linestyle=":", linewidth=1)
    axis.set(yscale="log", xlabel="alpha, per squared place (dotted: the one chosen for the dtype)", ylabel="largest error against the convolution")
    axis.legend()
    figure.savefig(path, dpi=110)
    return rows
