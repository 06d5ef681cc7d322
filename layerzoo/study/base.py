"""What every study is: a question, the cases that answer it, what is measured of each, and how it is told."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from layerzoo.config import Recipe
    from layerzoo.data.datamodule import ImageData
    from layerzoo.models.model import Model


@dataclass(frozen=True)
class Case:
    """One row of a study.

    Fields:
        labels: {column: value}; the first names the curve.
        changes: in the recipe, such as "model.layer=mhsa".
    """

    labels: dict[str, object]
    changes: tuple[str, ...]

    @property
    def curve(self) -> str:
        return str(next(iter(self.labels.values())))


class Study(abc.ABC):
    """A question, answered by runs of one recipe that differ in what `varies` alone.

    Fields:
        name: of the study.
        question: one sentence.
        curves: names of what is compared; each may be left out.
        varies: keys of the recipe that the study sets itself.
        axis: the label that cases of a line differ in.
        by: the labels of a line of the picture.
        panels: {what is measured: the words at its axis} of the picture.
    """

    name: ClassVar[str]
    question: ClassVar[str]
    curves: ClassVar[tuple[str, ...]]
    varies: ClassVar[tuple[str, ...]]
    axis: ClassVar[str]
    by: ClassVar[tuple[str, ...]]
    panels: ClassVar[dict[str, str]]

    @abc.abstractmethod
    def cases(self, recipe: Recipe, curves: list[str], scale: str) -> list[Case]:
        """All rows of these curves; what is not varied is as `recipe` says."""

    @abc.abstractmethod
    def probe(self, model: Model, data: ImageData, tested: float) -> dict[str, float | list[float]]:
        """What is measured of a trained model beside its accuracy `tested`: numbers, or one for each layer."""

    @abc.abstractmethod
    def conclude(self, rows: list[dict]) -> str:
        """A paragraph on the table, which says what was found and what cannot be."""

    def draw(self, figure: Figure, rows: list[dict]) -> None:
        """One panel for each of `panels`."""
        figure.set_size_inches(5.2 * len(self.panels), 4)
        for axes, (what, words) in zip(figure.subplots(1, len(self.panels), squeeze=False).flat, self.panels.items()):
            self.lines(axes, rows, what)
            axes.set(xlabel=self.axis, ylabel=words)
            axes.set_xscale("log", base=2)
            places = sorted({r[self.axis] for r in rows})
            axes.set_xticks(places, [f"{place:,}" for place in places])
            axes.minorticks_off()
        figure.axes[0].legend(fontsize=7)

    def lines(self, axes: Axes, rows: list[dict], what: str) -> None:
        """A line for each set of labels in `by`, one colour a curve, with one standard deviation up and down."""
        lines = list(dict.fromkeys(tuple(r[key] for key in self.by) for r in rows))
        curves = list(dict.fromkeys(line[0] for line in lines))
        for line in lines:
            own = [r for r in rows if tuple(r[key] for key in self.by) == line]
            first = next(other for other in lines if other[0] == line[0])
            axes.errorbar(
                [r[self.axis] for r in own], [r[what] for r in own], yerr=[spread(r, what) for r in own], capsize=3, marker="o", markersize=4,
                color=f"C{curves.index(line[0])}", linestyle="-" if line == first else "--", label=", ".join(map(str, line)))


def spread(row: dict, what: str) -> float:
    """Standard deviation over seeds; 0 of one seed."""
    return row.get(f"{what} sd") or 0.0


def told(row: dict, what: str = "accuracy") -> str:
    """Mean and standard deviation, in words."""
    return f"{row[what]:.1f} %" + (f" ± {row[f'{what} sd']:.1f}" if row.get(f"{what} sd") is not None else "")


def against(row: dict, other: dict, what: str = "accuracy") -> str:
    """How far one row is from another, beside their spread, in words."""
    difference = row[what] - other[what]
    words = f"{abs(difference):.1f} points {'above' if difference >= 0 else 'below'}"
    if row.get(f"{what} sd") is None:
        return f"{words} (one seed, so no spread is known)"
    both = math.hypot(spread(row, what), spread(other, what))
    return f"{words} ({'more' if abs(difference) > 2 * both else 'not more'} than twice the spread of {both:.1f})"
