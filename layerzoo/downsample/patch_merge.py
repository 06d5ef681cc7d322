"""Patch merging: the channels of each 2x2 patch are joined, normalised and projected."""

from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.downsample.base import Downsample


class PatchMerge(Downsample):
    """Patch merging.

    **Paper**: Swin, arXiv 2103.14030.

    y[i, j] = W LayerNorm([x[2i, 2j], x[2i+1, 2j], x[2i, 2j+1], x[2i+1, 2j+1]]), with x = 0 beyond an odd side; with norm_last,
    LayerNorm(W [...]).

    **Shape**: (B, C, H, W) -> (B, C_out, ceil(H / 2), ceil(W / 2)).

    **Cost**: time N C C_out; memory N C; 4 C C_out parameters.

    **Args**:
        dim: channels C.
        dim_out: channels C_out; the paper's is 2 C.
        norm_last: the norm after the projection, as in Swin V2 (arXiv 2111.09883); off, as in Swin.

    **Raises**: ValueError for a dim or dim_out below 1, and for an input that is not (B, C, H, W).

    **Example**:
        >>> import torch
        >>> PatchMerge(64, 128)(torch.randn(2, 64, 7, 6)).shape
        torch.Size([2, 128, 4, 3])

    **Differs from the paper**: nothing.
    """

    card = Card(
        title="Patch merging", paper="2103.14030", year=2021, cost=(1, 1), mask=False, needs_grid=True,
        sizes={"tiny": {"dim": 8, "dim_out": 16}, "base": {"dim": 64, "dim_out": 128}, "odd": {"dim": 5, "dim_out": 7, "norm_last": True}},
        cannot={"mask": "it is a unit of maps, and a map has no places to leave out"})

    def __init__(self, dim: int, dim_out: int, *, norm_last: bool = False):
        super().__init__(dim, dim_out)
        self.norm_last = norm_last
        self.norm = nn.LayerNorm(dim_out if norm_last else 4 * dim)
        self.proj = nn.Linear(4 * dim, dim_out, bias=False)

    def reduce(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2)).permute(0, 2, 3, 1)
        patches = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 4, 2, 5).flatten(3)
        y = self.norm(self.proj(patches)) if self.norm_last else self.proj(self.norm(patches))
        return y.permute(0, 3, 1, 2)
