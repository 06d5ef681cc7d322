"""Scores: softmax beside functions whose weights need not sum to one, as the number of tokens grows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from layerzoo.study.base import Case, Study, against, told

if TYPE_CHECKING:
    from torch import Tensor

    from layerzoo.config import Recipe
    from layerzoo.data.datamodule import ImageData
    from layerzoo.layers.attention.mhsa import MHSA
    from layerzoo.models.model import Model

PATCHES = {"smoke": (4, 2), "small": (4, 2, 1), "full": (4, 2, 1)}  # pixels: 64, 256 and 1,024 tokens of an image of 32 x 32
FEW = 4  # images whose weights are looked at
LEAST = 1e-20  # of a row's sum: a row of zeros is no distribution


class Scores(Study):
    """A ViT whose attention weights are softmax(s), relu(s) / N, relu(s) (relu_sum), relu(s)^2 / N or sigmoid(s - log N)."""

    name = "scores"
    question = "Softmax or ReLU: which weights does attention need, and does it depend on the number of tokens?"
    curves = ("softmax", "relu", "relu_sum", "relu_squared", "sigmoid")
    varies = ("model.layer", "model.stem")
    axis = "tokens"
    by = ("weights",)
    panels = {
        "accuracy": "test accuracy (%)", "row sum": "sum of a query's weights", "zeros": "share of weights that are 0",
        "entropy": "entropy of weights (1 = all alike)"}

    def cases(self, recipe: Recipe, curves: list[str], scale: str) -> list[Case]:
        return [
            Case({"weights": name, "tokens": (recipe.data.img_size // patch) ** 2}, (
                f"model.layer={{name: mhsa, normalize: {name}}}", f"model.stem={{name: patchify, patch_size: {patch}}}"))
            for name in curves for patch in PATCHES[scale]]

    def probe(self, model: Model, data: ImageData, tested: float) -> dict[str, float | list[float]]:
        """Of the weights of each layer, first to last: mean sum of a row, share of zeros, mean entropy of rows over log N."""
        import torch

        x = data.training_images(FEW).to(next(model.parameters()).device)
        found: dict[str, list[float]] = {"row sum": [], "zeros": [], "entropy": []}

        def look(layer: MHSA, given: tuple[Tensor, ...]) -> None:
            weights = weights_of(layer, given[0])
            sums = weights.sum(-1, keepdim=True)
            shares = weights / sums.clamp(min=LEAST)
            entropy = torch.special.entr(shares).sum(-1)[sums[..., 0] > LEAST] / math.log(max(2, weights.shape[-1]))
            measured = (sums, (weights == 0).float(), entropy)
            for values, of in zip(found.values(), measured):
                values.append(of.mean().item() if of.numel() else 0.0)

        hooks = [stage.layer.register_forward_pre_hook(look) for stage in model.stages]
        with torch.inference_mode():
            model(x)
        for hook in hooks:
            hook.remove()
        return found

    def conclude(self, rows: list[dict]) -> str:
        parts = []
        for tokens in sorted({r["tokens"] for r in rows}):
            own = {r["weights"]: r for r in rows if r["tokens"] == tokens}
            softmax = own.pop("softmax", None)
            words = [f"softmax {told(softmax)}"] if softmax else []
            words += [f"{name} {told(r)}" + (f", {against(r, softmax)} softmax" if softmax else "") for name, r in own.items()]
            parts.append(f"{tokens:,} tokens: {'; '.join(words)}.")
        sums = "; ".join(f"{r['weights']} at {r['tokens']:,} tokens {r['row sum']:.2g}, {100 * r['zeros']:.0f} % zeros" for r in rows)
        return " ".join([
            *parts, f"After training, mean over layers, a query's weights sum to: {sums} (runs.csv has every layer).",
            "arXiv 2309.08586 found relu(s) / N close to softmax on ImageNet-21k; nobody promised it for small images. Differences below twice the spread "
            "are none."])


def weights_of(layer: MHSA, x: Tensor) -> Tensor:
    """Attention weights (B, h, N, N) that a layer with plain scores makes of a map (B, C, H, W)."""
    from layerzoo.layers.base import map_to_tokens
    from layerzoo.ops.attention import make_scores, make_weights

    q, k, _ = layer.split(map_to_tokens(x))
    return make_weights(make_scores(q, k), layer.normalize, None)
