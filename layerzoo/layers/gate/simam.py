"""SimAM: a place passes the more, the further its value lies from the mean of its channel; no parameters."""

from torch import Tensor

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import Layer


class SimAM(Layer):
    """Parameter-free attention from an energy.

    **Paper**: SimAM: A Simple, Parameter-Free Attention Module for Convolutional Neural Networks, ICML 2021 (not on arXiv).

    y = sigmoid((x - m)^2 / (4 (v + eps)) + 1 / 2) * x, with m and v the mean and the variance of each channel over all positions: the
    sigmoid of 1 / e for the least energy e = 4 (v + eps) / ((x - m)^2 + 2 v + 2 eps) of a linear separation of the place from the others.

    **Shape**: (B, C, H, W) -> the same.

    **Cost**: time and memory N C; no parameters.

    **Args**:
        dim: channels C.
        eps: lambda of the paper, in squares of activations, the weight decay of the separation; 1e-4, the paper's.

    **Raises**: ValueError for an eps that is not above 0.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("simam", dim=1)(torch.tensor([[[[1.0, 1.0, 1.0, 5.0]]]]))
        tensor([[[[0.6370, 0.6370, 0.6370, 3.7158]]]])

    **Differs from the paper**: v is divided by N - 1 as in its code, not by N as in its text; on a map of one position it is zero.
    """

    card = Card(
        title="SimAM", paper="", year=2021, cost=(1, 1), mask=False, needs_grid=True, symmetry="permutation",
        sizes={"tiny": {"dim": 8}, "base": {"dim": 64}, "odd": {"dim": 5, "eps": 0.1}},
        differs="the variance is divided by N - 1 as in its code, not by N as in its text; on a map of one position it is zero",
        cannot={"mask": "it is a layer of maps, and a map has no places to leave out"})

    def __init__(self, dim: int, *, eps: float = 1e-4):
        super().__init__(dim)
        if not eps > 0:
            raise bad_value("eps", got=eps, expected="a number > 0", do="The paper's is 1e-4.")
        self.eps = eps

    def mix(self, x: Tensor) -> Tensor:
        square = (x - x.mean((2, 3), keepdim=True)).square()
        count = x.shape[2] * x.shape[3]
        variance = square.mean((2, 3), keepdim=True) * (count / max(count - 1, 1))
        return x * (square / (4 * (variance + self.eps)) + 0.5).sigmoid()
