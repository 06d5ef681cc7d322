"""What the golden folders hold; `python make.py FORMAT` writes those of the present format, once for each format that is released."""

import sys
from pathlib import Path

import torch
from torch import Tensor

import layerzoo as lz
from layerzoo.checkpoint import save_checkpoint
from layerzoo.train.saving import write

HERE = Path(__file__).parent
ABOUT = {"recipe_name": "golden", "recipe_sha256": "0" * 64, "seed": 3, "versions": {"layerzoo": "golden"}}
SIZES = {"num_classes": 3, "img_size": 8, "options": {"depth": 1, "dim": 8}, "layer": {"name": "mhsa", "num_heads": 2}}
PUBLISHED = {"classes": ["a", "ü", "c c"], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "metrics": {"test/top1": 0.25}, "recipe_name": "golden"}


def counted(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Small multiples of 1/64, which every dtype of weights holds exactly."""
    count = torch.Size(shape).numel()
    return ((torch.arange(count) * 7 % 31 - 15) / 64).view(shape).to(dtype)


def training() -> dict:
    """A training checkpoint of every kind of value that one may hold."""
    kinds = {str(dtype).removeprefix("torch."): counted((2, 3), dtype) for dtype in (torch.float64, torch.float16, torch.bfloat16)}
    kinds |= {"int64": torch.arange(4), "uint8": torch.arange(4, dtype=torch.uint8), "bool": torch.tensor([True, False]), "scalar": torch.tensor(0.5)}
    return {
        "epoch": 2, "global_step": 12, "pytorch-lightning_version": "2.6.6",
        "state_dict": {"model.weight": counted((3, 5)), "model.map": counted((1, 2, 3, 4)).contiguous(memory_format=torch.channels_last)},
        "optimizer_states": [{"state": {0: {"exp_avg": counted((3, 5)), "step": torch.tensor(12.0)}}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999)}]}],
        "lr_schedulers": [{"last_epoch": 12, "_last_lr": [0.1 + 0.2]}], "callbacks": {"Mine": {"kinds": kinds, "none": None, "text": "ü\n", "nan": float("nan")}},
        "loops": {"fit_loop": {"state_dict": {}, "done": [True, False, -1, 2**60]}}}


def model() -> torch.nn.Module:
    """A model of about a thousand parameters, each a `counted`."""
    made = lz.create_model("vit_tiny", **SIZES)
    with torch.no_grad():
        for value in made.state_dict().values():
            value.copy_(counted(tuple(value.shape)))
    return made.eval()


if __name__ == "__main__":
    folder = HERE / f"format-{int(sys.argv[1])}"
    folder.mkdir()
    (folder / "ckpt").mkdir()
    write(folder / "ckpt" / "step-000000012", training(), ABOUT)
    save_checkpoint(folder / "published", model(), **PUBLISHED)
