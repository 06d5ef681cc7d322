"""How fast batches come: the in-memory pipeline beside PIL with torchvision: `python -m layerzoo.report.bench_data PATH`.

PATH holds train/ with one folder of small images per class, such as CIFAR-10 as JPEG files. Variants alternate in shuffled
rounds of one process with one torch thread; each gives randomly cropped (padding 4), mirrored and normalised float32 batches
(torchvision pads with black, which costs it less than the reflection that the in-memory pipeline has). Times are wall times, since some variants have worker processes, whose start and first batches, made ahead,
are not timed. Each round gives a ratio to the in-memory pipeline; the median over rounds is printed. Last comes the
share of a training step of resnet18.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

import layerzoo as lz
from layerzoo.config import AugmentConfig, DataConfig
from layerzoo.data.datamodule import ImageData

OURS, PADDING, AHEAD = "in memory", 4, 2  # batches that each worker makes ahead
TARGETS = {"PIL + torchvision, in process": 20, "PIL + torchvision, 2 workers": 12, "JPEG files, 2 workers": 20}


class PilImages(Dataset):
    """Decoded images in memory, transformed one by one."""

    def __init__(self, pixels: Tensor, labels: list[int], transform: transforms.Compose):
        self.images, self.labels, self.transform = [Image.fromarray(image) for image in pixels.numpy()], labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(self.images[i]), self.labels[i]


def create_loaders(path: Path, batch: int) -> dict[str, Iterable]:
    """One loader per variant, over the same images."""
    size = Image.open(next(p for p in (path / "train").rglob("*") if p.is_file())).size[0]
    augment = AugmentConfig(crop_padding=PADDING, flip="random")
    data = ImageData(DataConfig(f"folder:{path}", img_size=size, batch_size=batch, pipeline="memory", augment=augment), 0)
    data.setup()
    transform = transforms.Compose([
        transforms.RandomCrop(size, padding=PADDING), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
        transforms.Normalize(data.mean, data.std)])
    images = PilImages(data.pixels["train"], data.sets["train"].labels.tolist(), transform)
    others = {}
    for name, dataset, workers in zip(TARGETS, (images, images, ImageFolder(path / "train", transform)), (0, 2, 2)):
        many = {"num_workers": workers, "persistent_workers": True, "prefetch_factor": AHEAD} if workers else {}
        others[name] = DataLoader(dataset, batch, shuffle=True, **many)
    return {OURS: data.train_dataloader(), **others}


def images_per_second(loader: Iterable, batches: int) -> float:
    """Over `batches` batches behind those that workers have made ahead, or as many as an epoch has."""
    ahead = AHEAD * getattr(loader, "num_workers", 0)
    stream = itertools.islice(loader, ahead + batches)
    for _ in range(ahead + 1):
        next(stream)
    start = time.perf_counter()
    count = sum(len(x) for x, _ in stream)
    return count / (time.perf_counter() - start)


def measure(loaders: dict[str, Iterable], rounds: int, batches: int) -> dict[str, list[float]]:
    """Images per second of each variant, one entry per round; the in-memory one gets ten times the batches, and still needs less time."""
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    for turn in range(rounds + 1):
        for name in random.sample(list(loaders), len(loaders)):
            rate = images_per_second(loaders[name], batches * 10 if name == OURS else batches)
            if turn:
                rates[name].append(rate)
    return rates


def step_seconds(x: Tensor, y: Tensor) -> float:
    """Of a training step of resnet18 on this batch: the faster of two."""
    model = lz.create_model("resnet18", num_classes=int(y.max()) + 1, img_size=x.shape[2]).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    times = []
    for _ in range(2):
        start = time.perf_counter()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Print one line per variant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path)
    for option, default in {"rounds": 7, "batches": 20, "batch": 256}.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(1)
    loaders = create_loaders(args.path, args.batch)
    rates = measure(loaders, args.rounds, args.batches)
    print(f"{'variant':32}{'images/s':>10}{'in memory is':>16} [quartiles]     target")
    for name, taken in rates.items():
        low, middle, high = statistics.quantiles((own / rate for own, rate in zip(rates[OURS], taken)), n=4, method="inclusive")
        target = f">= {TARGETS[name]}" if name in TARGETS else ""
        print(f"{name:32}{statistics.median(taken):10,.0f}{middle:14.1f} x [{low:.1f}, {high:.1f}]{target:>12}")
    x, y = next(iter(loaders[OURS]))
    share = args.batch / statistics.median(rates[OURS]) / step_seconds(x, y)
    print(f"share of a training step of resnet18 (batch {args.batch}): {share:.3%}, target <= 1 %")


if __name__ == "__main__":
    main()
