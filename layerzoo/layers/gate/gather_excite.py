"""Gather-excite: a gate for each channel and place from what its channel holds around that place, or on the whole map."""

from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import Layer, check_choice, check_grid
from layerzoo.layers.gate.se import squeezed
from layerzoo.ops.tables import resize_places


class GatherExcite(Layer):
    """Gather-excite operators, with parameters or none.

    **Paper**: Gather-Excite, arXiv 1810.12348.

    y = sigmoid(up(f(gather(x)))) * x, with gather(x) of ceil(H / e) x ceil(W / e) places, e the extent, up the nearest of these and

    - gather "mean": the mean over the (2e - 1) x (2e - 1) places around every e-th one that lie in the map;
    - gather "conv": log2 e depthwise 3 x 3 convolutions of stride 2 with relu between them;
    - f the identity, or with excite "mlp" W_2 relu(W_1 s + b_1) + b_2 as in `se`.

    With extent 0 there is one place: the mean over the map, or a sum weighted by a depthwise kernel as large as `grid`, which on a map
    of another size is resized bilinearly and divided by the growth of N.

    **Shape**: (B, C, H, W) -> the same.

    **Cost**: time N C, with "mlp" N C R / e^2 more; memory N C.

    **Args**:
        dim: channels C.
        extent: e, in positions, a power of two; 0 = the whole map, the paper's best.
        gather: "mean" or "conv"; mean, which has no parameters.
        excite: "none" or "mlp"; none. The paper's GE-theta-minus is mean and none, GE-theta conv and none, GE-theta-plus conv and mlp.
        reduction: C / R of the mlp; 16, the paper's. R is rounded to a multiple of 8, 8 at least.
        grid: (H, W) the kernel is built for; only for gather="conv" with extent=0.

    **Raises**: ValueError for an extent that is not 0 or a power of two >= 2, an unknown gather or excite, a reduction below 1, and a
    whole map gathered by a kernel without a grid.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("gather_excite", dim=64, extent=4, gather="conv")(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: no batch norm in the gathering, whose convolutions have biases instead; R is a multiple of 8; a kernel as
    large as the map is resized.
    """

    card = Card(
        title="Gather-excite", paper="1810.12348", year=2018, cost=(1, 1), mask=False, needs_grid=True,
        sizes={"tiny": {"dim": 8, "extent": 4, "gather": "conv", "excite": "mlp"}, "base": {"dim": 64, "extent": 2},
               "odd": {"dim": 15, "gather": "conv", "grid": (5, 3)}},
        limit={"equals": "se", "options": {"excite": "mlp"}, "grid": (4, 6)},
        differs="no batch norm in the gathering, whose convolutions have biases; a kernel as large as the map is resized",
        cannot={"mask": "it is a layer of maps, and a map has no places to leave out"})

    def __init__(
        self, dim: int, *, extent: int = 0, gather: str = "mean", excite: str = "none", reduction: int = 16,
        grid: tuple[int, int] | None = None,
    ):
        super().__init__(dim)
        if not isinstance(extent, int) or extent < 0 or extent == 1 or extent & (extent - 1):
            expected = "0, the whole map, or a power of two >= 2"
            raise bad_value("extent", got=repr(extent), expected=expected, do="The paper has 0, 2, 4 and 8.")
        check_choice("gather", gather, ("mean", "conv"))
        check_choice("excite", excite, ("none", "mlp"))
        self.extent, self.gather, self.grid = extent, None, None
        if gather == "conv" and extent:
            steps = [(nn.ReLU(), nn.Conv2d(dim, dim, 3, 2, 1, groups=dim)) for _ in range(extent.bit_length() - 1)]
            self.gather = nn.Sequential(*[module for step in steps for module in step][1:])
        elif gather == "conv":
            self.grid = check_grid(grid)
            self.gather = nn.Conv2d(dim, dim, self.grid, groups=dim)
        hidden = squeezed(dim, reduction)
        self.fc1, self.fc2 = (nn.Conv2d(dim, hidden, 1), nn.Conv2d(hidden, dim, 1)) if excite == "mlp" else (None, None)

    def mix(self, x: Tensor) -> Tensor:
        gate = self.gathered(x)
        if self.fc1 is not None:
            gate = self.fc2(F.relu(self.fc1(gate)))
        gate = gate.sigmoid()
        return x * (F.interpolate(gate, size=x.shape[2:], mode="nearest") if self.extent else gate)

    def gathered(self, x: Tensor) -> Tensor:
        """(B, C, ceil(H / e), ceil(W / e)), or (B, C, 1, 1) of the whole map."""
        if self.grid is not None:
            weight = resize_places(self.gather.weight.flatten(1), self.grid, tuple(x.shape[2:]))
            growth = weight.shape[1] / (self.grid[0] * self.grid[1])
            return ((x.flatten(2) * weight).sum(2) / growth + self.gather.bias)[:, :, None, None]
        if self.gather is not None:
            return self.gather(x)
        if not self.extent:
            return x.mean((2, 3), keepdim=True)
        return F.avg_pool2d(x, 2 * self.extent - 1, self.extent, self.extent - 1, count_include_pad=False)
