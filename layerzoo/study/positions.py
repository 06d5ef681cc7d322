"""Position encodings: what each brings, and that without one attention does not know where a patch was."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerzoo.study.base import Case, Study, against, spread, told

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from layerzoo.config import Recipe
    from layerzoo.data.datamodule import ImageData
    from layerzoo.models.model import Model

PATCHES = 8  # along a side of the image
FEW = 64  # images whose logits are compared
SHUFFLED = "shuffled accuracy"
MOVED = "largest change of a logit"


class Positions(Study):
    """A ViT under each encoding, tested on the images as they are and with their patches in another order."""

    name = "positions"
    question = "What does a position encoding bring, and what does attention know without one?"
    curves = ("none", "sincos2d", "learned", "relative_bias", "rope2d", "conditional", "quadratic", "learned_offsets")
    varies = ("model.layer", "model.position", "model.stem")
    axis = "position"
    by = ("position",)
    panels = {"accuracy": "test accuracy (%)"}

    def cases(self, recipe: Recipe, curves: list[str], scale: str) -> list[Case]:
        stem = f"model.stem={{name: patchify, patch_size: {recipe.data.img_size // PATCHES}}}"
        return [Case({"position": name}, (f"model.position={name}", "model.layer=mhsa", stem)) for name in curves]

    def probe(self, model: Model, data: ImageData, tested: float) -> dict[str, float | list[float]]:
        import torch

        from layerzoo.study.probes import accuracy

        order = torch.randperm(PATCHES**2, generator=torch.Generator().manual_seed(0))
        x = data.training_images(FEW).to(next(model.parameters()).device)
        with torch.inference_mode():
            moved = (model(shuffle(x, order)) - model(x)).abs().max().item()
        return {SHUFFLED: accuracy(model, data.test_dataloader(), lambda x: shuffle(x, order)), MOVED: moved}

    def conclude(self, rows: list[dict]) -> str:
        found = {r["position"]: r for r in rows}
        best = max(rows, key=lambda r: r["accuracy"])
        parts = [f"Most is reached by {best['position']}: {told(best)}."]
        if (none := found.get("none")) is not None:
            parts.append(
                f"Without an encoding the model reaches {told(none)}, and on images whose {PATCHES**2} patches stand in another order {told(none, SHUFFLED)}: "
                f"no logit changes by more than {none[MOVED]:.1g}, since attention, the per-position unit and the mean over positions see a set.")
        for r in (r for r in rows if r is not none):
            beside = f", {against(r, none)} no encoding" if none else ""
            parts.append(f"{r['position']}: {told(r)}{beside}; with shuffled patches {told(r, SHUFFLED)}.")
        parts.append(
            "How far an encoding falls when patches are shuffled says how much its model relies on order, not how good it is. Differences below twice "
            "the spread are none.")
        return " ".join(parts)

    def draw(self, figure: Figure, rows: list[dict]) -> None:
        """Both accuracies of each encoding, side by side."""
        figure.set_size_inches(7.2, 3.6)
        axes = figure.subplots()
        for offset, what, words in ((-0.2, "accuracy", "as they are"), (0.2, SHUFFLED, "patches shuffled")):
            places = [i + offset for i in range(len(rows))]
            axes.bar(places, [r[what] for r in rows], 0.38, yerr=[spread(r, what) for r in rows], capsize=3, label=words)
        axes.set_xticks(range(len(rows)), [r["position"] for r in rows], rotation=20)
        axes.set(ylabel=self.panels["accuracy"])
        axes.legend()


def shuffle(x: Tensor, order: Tensor) -> Tensor:
    """Images (B, C, H, W) with their patches, PATCHES along each side, in another order: place i shows patch order[i]."""
    from torch.nn import functional as F

    size = x.shape[2] // PATCHES
    return F.fold(F.unfold(x, size, stride=size)[:, :, order.to(x.device)], x.shape[2:], size, stride=size)
