"""Measured costs of layers: fitted exponents, and the length from which a layer beats exact attention. Imports nothing heavy."""

from __future__ import annotations

import csv
import dataclasses
import math
import statistics
from functools import cache
from pathlib import Path

from layerzoo.errors import bad_value
from layerzoo.registry import LAYERS

EXACT = "mhsa"
LONG = 1024  # positions; in shorter sequences what is linear in N hides the power
RECORD = Path(__file__).with_name("measured.csv")  # what `layerzoo bench layers` wrote on the machine that the docs name
ARENA = Path(__file__).with_name("lra.csv")  # what `layerzoo bench lra` measures, on the machine that the docs name
FAULTS, DOWNLOADS, RESUMED = (Path(__file__).with_name(f"{name}.csv") for name in ("faults", "downloads", "resume"))  # what bench_<name> wrote
PEERS = Path(__file__).with_name("peers.csv")  # what `python -m layerzoo.report.bench_peers` wrote there


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One layer at one length.

    Fields:
        name: of the layer.
        parameters: their number.
        length: positions N.
        ms: median milliseconds of a forward and a backward pass.
        ratio: median over rounds of its time over exact attention's in the same round.
        low, high: quartiles of these ratios.
        mib: most MiB of activations and gradients alive at once.
    """

    name: str
    parameters: int
    length: int
    ms: float
    ratio: float
    low: float
    high: float
    mib: float


def slope(lengths: list[int], values: list[float]) -> float:
    """The exponent of the power of N that fits best; nan below two lengths."""
    if len(lengths) < 2:
        return math.nan
    return statistics.linear_regression([math.log(n) for n in lengths], [math.log(v) for v in values]).slope


def crossover(lengths: list[int], ratios: list[float]) -> str:
    """The length from which a layer takes less time than exact attention, between those measured on a straight line of logarithms."""
    if ratios[-1] >= 1:
        return f"> {lengths[-1]:,}"
    if all(r < 1 for r in ratios):
        return f"< {lengths[0]:,}"
    i = max(i for i, r in enumerate(ratios) if r >= 1)
    share = math.log(ratios[i]) / (math.log(ratios[i]) - math.log(ratios[i + 1]))
    return f"{lengths[i] * (lengths[i + 1] / lengths[i]) ** share:,.0f}"


def summary(found: list[Measurement]) -> list[dict]:
    """One row per layer: milliseconds and MiB at each length, fitted exponents beside the card's, and the crossover."""
    rows = []
    for name in dict.fromkeys(m.name for m in found):
        own = {m.length: m for m in found if m.name == name}
        row = {"name": name} | {
            f"{n:,}": f"{own[n].ms:,.1f} ms {own[n].mib:,.0f} MiB" if n in own else "left out" for n in sorted({m.length for m in found})}
        fitted = zip(("time", "memory"), exponents(list(own.values())), LAYERS.card(name).cost)
        row |= {what: f"N^{fit:.2f} ({claim:g})" for what, fit, claim in fitted}
        rows.append(row | {"faster than exact from": "" if name == EXACT else crossover(list(own), [m.ratio for m in own.values()])})
    return rows


def write_csv(found: list[Measurement], path: Path) -> None:
    """One line per layer and length."""
    write_rows([{k: f"{v:.4g}" if isinstance(v, float) else v for k, v in dataclasses.asdict(m).items()} for m in found], path)


def read_csv(path: Path) -> list[Measurement]:
    """What `write_csv` wrote."""
    kinds = {"name": str, "parameters": int, "length": int}
    return [Measurement(**{k: kinds.get(k, float)(v) for k, v in row.items()}) for row in read_rows(path)]


def new_path(path: Path) -> Path:
    """The path, if it is free and its folder is there."""
    if path.exists():
        raise bad_value("destination", got=f"{path}, which exists", expected="a new file", do="Choose another name; nothing was written.")
    if not path.parent.is_dir():
        raise bad_value("destination", got=path, expected="a file in a folder that exists", do=f"Create {path.parent} first.")
    return path


def write_rows(rows: list[dict], path: Path) -> None:
    """Rows with the same keys, as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: Path) -> list[dict]:
    """What `write_rows` wrote, every value as text."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@cache
def recorded() -> dict[str, list[Measurement]]:
    """The committed measurements of each layer, shortest first."""
    found: dict[str, list[Measurement]] = {}
    for m in read_csv(RECORD):
        found.setdefault(m.name, []).append(m)
    return found


def exponents(own: list[Measurement]) -> tuple[float, float]:
    """Fitted exponents of time and of memory in N, of one layer, over lengths from 1024."""
    own = [m for m in own if m.length >= LONG]
    return slope([m.length for m in own], [m.ms for m in own]), slope([m.length for m in own], [m.mib for m in own])
