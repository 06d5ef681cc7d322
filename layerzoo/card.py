"""Card: what a layer claims. Tests, docs, listings and benchmarks are drawn from it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Card:
    """The claims of one layer, as literals: listings read them from the source without importing torch.

    Fields:
        title: the method's name in its paper.
        paper: arXiv id, or "" where there is no arXiv paper.
        year: of the paper.
        cost: exponents of time and memory in the number of positions N.
        causal: takes `causal=True`; or "always": no position sees another, so no option is needed.
        mask: honours `mask=`; if False, `cannot["mask"]` says why.
        needs_grid: needs the map's height and width (a map, or tokens with `grid=`).
        symmetry: "permutation", "translation" or "none", measured by test.
        sizes: constructor options for tests and benchmarks, keys tiny, base and odd, each with `dim`.
        limit: where the layer equals another one, or None. Keys: `equals` (layer name), `options`, `equals_options`,
            `grid` (H, W) of the test, `set` ({parameter: "zeros" | "ones" | "identity" | a number}), `tol` (float64), or for
            convergence `sweep` (option name), `values` and `rate` (error ~ values ** -rate).
        differs: how this deviates from the paper, or "nothing".
        cannot: {check: reason} for what the method truly cannot do.
        survey: class in "Efficient Transformers: A Survey" (arXiv 2009.06732), such as "KR" or "M+DS"; "" = not in it.
    """

    title: str
    paper: str
    year: int
    cost: tuple[float, float]
    causal: bool | str = False
    mask: bool = True
    needs_grid: bool = False
    symmetry: str = "none"
    sizes: dict
    limit: dict | None = None
    differs: str = "nothing"
    cannot: dict = field(default_factory=dict)
    survey: str = ""
    name: str = ""
    family: str = ""
