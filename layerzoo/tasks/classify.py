"""Supervised classification."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from layerzoo.config import TaskConfig
from layerzoo.ops.auxiliary import collect_auxiliary
from layerzoo.tasks.base import Task, check_share


class Classify(Task):
    """Cross-entropy with label smoothing or soft targets; loss, top-1 and (above 5 classes) top-5 on val and test.

    Nothing is read on the host and nothing is logged in a step: the training loss is the step's output, with what layers report
    (`layerzoo.ops.auxiliary`: their losses are added to it), and `layerzoo.train.callbacks.StepMeter` gathers both; evaluation sums on the device and logs at the end of the epoch. Give
    each rank its own share of an evaluation set, unpadded and not empty: ranks are summed, so every sample counts once.
    Evaluation is of the averaged weights where there are any, and its loss is without label smoothing.

    Args:
        model: images (B, C, H, W) to logits (B, K).
        config: loss, optimiser, schedule, averaging, test-time augmentation.
        classes: K class names.
        steps_per_epoch: optimiser steps in an epoch.
        max_epochs: length of training.
        seed: of dropout and drop path.
    Raises:
        ValueError: for a label_smoothing outside [0, 1), and whatever Task refuses.
    """

    def __init__(
        self, model: nn.Module, config: TaskConfig, *, classes: list[str], steps_per_epoch: int = 1, max_epochs: int = 1, seed: int = 0,
    ):
        super().__init__(model, config, steps_per_epoch=steps_per_epoch, max_epochs=max_epochs, seed=seed)
        check_share("task.label_smoothing", config.label_smoothing)
        self.classes = classes
        self.meters = nn.ModuleDict({split: create_meters(split, len(classes)) for split in ("val", "test")})

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W), with test-time augmentation if configured."""
        return sum(weight * self.final_model(self.layout(view)) for weight, view in TTA[self.config.tta](x))

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor | dict[str, Tensor]:
        x, y = batch
        with collect_auxiliary() as auxiliary:
            logits = self.model(self.layout(x))
        loss = F.cross_entropy(logits, y, label_smoothing=self.config.label_smoothing) + auxiliary.loss()
        return {"loss": loss, **means} if (means := auxiliary.means()) else loss

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return self._measure("val", *batch)

    def test_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return self._measure("test", *batch)

    def predict_step(self, batch: Tensor) -> Tensor:
        """Class probabilities (B, K)."""
        return self(batch).float().softmax(1)

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.meters["val"])

    def on_test_epoch_end(self) -> None:
        self.log_dict(self.meters["test"])

    def _measure(self, split: str, x: Tensor, y: Tensor) -> Tensor:
        logits = self(x).float()
        self.meters[split].update(logits, y)
        return logits


class MeanCrossEntropy(Metric):
    """Mean over samples, whatever the batches. torchmetrics' MeanMetric reads the host or, told not to, drops the weights."""

    full_state_update = False

    def __init__(self):
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Take in logits (B, K) and classes (B,)."""
        self.total += F.cross_entropy(logits, target, reduction="sum")
        self.count += len(target)

    def compute(self) -> Tensor:
        return self.total / self.count


def create_meters(split: str, num_classes: int) -> MetricCollection:
    """Loss, top-1, and top-5 above 5 classes, under the names split/loss and so on."""
    accuracies = {
        f"top{k}": MulticlassAccuracy(num_classes, top_k=k, average="micro", validate_args=False) for k in (1, 5) if k == 1 or num_classes > 5}
    return MetricCollection({"loss": MeanCrossEntropy(), **accuracies}, prefix=f"{split}/", compute_groups=False)


def _plain(x: Tensor) -> list[tuple[float, Tensor]]:
    return [(1.0, x)]


def _flip(x: Tensor) -> list[tuple[float, Tensor]]:
    return [(0.5, x), (0.5, x.flip(3))]


def _flip_shift(x: Tensor) -> list[tuple[float, Tensor]]:
    """Both mirror images of the image and, at half its weight, of two shifts by a pixel (airbench, arXiv 2404.00498)."""
    height, width = x.shape[2:]
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
    shifts = padded[:, :, :height, :width], padded[:, :, 2:, 2:]
    return [(share * weight, view) for image, share in ((x, 0.5), (shifts[0], 0.25), (shifts[1], 0.25)) for weight, view in _flip(image)]


TTA = {"none": _plain, "flip": _flip, "flip_shift": _flip_shift}
