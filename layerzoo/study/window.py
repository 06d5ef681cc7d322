"""Windows: accuracy against how far a position sees, up to the whole map, where it is full attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerzoo.study.base import Case, Study, against, told

if TYPE_CHECKING:
    from torch import Tensor

    from layerzoo.config import Recipe
    from layerzoo.data.datamodule import ImageData
    from layerzoo.models.model import Model

PATCH = 2  # pixels
FEW = 64  # images whose logits are compared
FULL = "mhsa"
APART = "largest difference from full attention"


class Window(Study):
    """A ViT whose attention sees w x w positions: windows, every other layer's shifted, or the neighbourhood of each position."""

    name = "window"
    question = "How far must attention see?"
    curves = ("window_attention", "neighborhood_attention", FULL)
    varies = ("model.layer", "model.position", "model.stem")
    axis = "w"
    by = ("layer",)
    panels = {"accuracy": "test accuracy (%)"}

    def cases(self, recipe: Recipe, curves: list[str], scale: str) -> list[Case]:
        side = recipe.data.img_size // PATCH
        stem = f"model.stem={{name: patchify, patch_size: {PATCH}}}"
        made = [(name, w) for name in curves for w in sizes(name, side)]
        return [Case({"layer": name, "w": w}, (f"model.layer={spec(name, w)}", f"model.position={position(name)}", stem)) for name, w in made]

    def probe(self, model: Model, data: ImageData, tested: float) -> dict[str, float | list[float]]:
        import torch

        layer = model.stages[0].layer
        if getattr(layer, "window_size", getattr(layer, "kernel_size", 0)) < max(model.grid):
            return {}
        x = data.training_images(FEW).to(next(model.parameters()).device)
        with torch.inference_mode():
            return {APART: (as_full(model)(x) - model(x)).abs().max().item()}

    def conclude(self, rows: list[dict]) -> str:
        parts = []
        for name in dict.fromkeys(r["layer"] for r in rows if r["layer"] != FULL):
            own = [r for r in rows if r["layer"] == name]
            whole = own[-1]
            best = max(own, key=lambda r: r["accuracy"])
            parts.append(
                f"{name} reaches {told(own[0])} with w = {own[0]['w']}, where positions are alone, {told(whole)} with w = {whole['w']}, the whole map, and most "
                f"with w = {best['w']}: {told(best)}, {against(best, whole)} the whole map. With its weights in full attention no logit differs by more than "
                f"{whole[APART]:.1g}: there it is full attention, up to rounding.")
        for r in rows:
            if r["layer"] == FULL:
                parts.append(f"Full attention with a relative bias, trained as itself, reaches {told(r)}.")
        return " ".join([*parts, "Windows of every other layer are shifted by half, so that what a position sees grows with depth in all of them but w = 1."])


def sizes(name: str, side: int) -> list[int]:
    """From one position to the whole map of `side` x `side`; neighbourhoods are odd."""
    if name == FULL:
        return [side]
    small = [2**i for i in range(side.bit_length()) if 2**i < side]
    return [*small, side] if name == "window_attention" else [*dict.fromkeys(2 * (w // 2) + 1 for w in small if w != 2), side | 1]


def spec(name: str, w: int) -> str:
    """The layer of the model, in YAML."""
    if name == FULL:
        return FULL
    if name == "window_attention":
        return str([{"name": name, "window_size": w, "shift": shift} for shift in (False, True)]).replace("False", "false").replace("True", "true")
    return f"{{name: {name}, kernel_size: {w}}}"


def position(name: str) -> str:
    """Windows hold a relative bias of their own."""
    return "relative_bias" if name == FULL else "none"


def as_full(model: Model) -> Model:
    """The same weights in full attention with a relative bias."""
    from layerzoo.models.create import build_model

    full = build_model(model.config | {"layer": FULL, "position": "relative_bias"}).to(next(model.parameters()).device).eval()
    wanted = full.state_dict()
    full.load_state_dict({key: middle(value, wanted[key].shape) for key, value in model.state_dict().items()})
    return full


def middle(table: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The centre of a table (h, a, b), where it holds offsets that the map does not have; any other tensor as it is."""
    if table.shape == shape:
        return table
    first = [(have - want) // 2 for have, want in zip(table.shape[1:], shape[1:])]
    return table[:, first[0] : first[0] + shape[1], first[1] : first[1] + shape[2]]
