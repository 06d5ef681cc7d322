"""Squeeze-and-excitation: the mean of every channel over the map decides, by a small MLP, how much of each channel passes."""

from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import Layer


class SE(Layer):
    """Squeeze-and-excitation as a gate.

    **Paper**: Squeeze-and-Excitation Networks, arXiv 1709.01507.

    y = g * x, g = sigmoid(W_2 relu(W_1 mean(x) + b_1) + b_2), the mean over all positions, W_1 from C channels to R and W_2 back.

    **Shape**: (B, C, H, W) -> the same.

    **Cost**: time N C for the mean and the product, and C R; memory N C; 2 C R parameters.

    **Args**:
        dim: channels C.
        reduction: C / R; 16, the paper's. R is rounded to a multiple of 8, 8 at least, as public code does.

    **Raises**: ValueError for a reduction below 1.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("se", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: R is a multiple of 8; the gate alone, without the convolutions whose output it scales: see `gated`.
    """

    card = Card(
        title="Squeeze-and-excitation", paper="1709.01507", year=2017, cost=(1, 1), mask=False, needs_grid=True, symmetry="permutation",
        sizes={"tiny": {"dim": 8}, "base": {"dim": 64}, "odd": {"dim": 15, "reduction": 1}},
        limit={"equals": "identity", "grid": (4, 6), "set": {"fc2.weight": "zeros", "fc2.bias": 50}},
        differs="the channels between are a multiple of 8; the gate alone, without the convolutions whose output it scales",
        cannot={"mask": "it is a layer of maps, and a map has no places to leave out"})

    def __init__(self, dim: int, *, reduction: int = 16):
        super().__init__(dim)
        hidden = squeezed(dim, reduction)
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, dim, 1)

    def mix(self, x: Tensor) -> Tensor:
        return x * self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()


def squeezed(dim: int, reduction: int) -> int:
    """dim / reduction channels, rounded to a multiple of 8, 8 at least."""
    if not isinstance(reduction, int) or reduction < 1:
        expected = "a whole number >= 1, by which the channels are divided"
        raise bad_value("reduction", got=repr(reduction), expected=expected, do="Choose one such as 16.")
    return max(8, int(dim / reduction + 4) // 8 * 8)
