"""Fourier mixing: the real part of a Fourier transform over positions and channels."""

import torch
from torch import Tensor

from layerzoo.card import Card
from layerzoo.layers.base import TokenLayer


class Fourier(TokenLayer):
    """Fourier mixing; no parameters.

    **Paper**: FNet, arXiv 2105.03824.

    y[n, c] = (N C)^(-1/2) sum_{m, k} x[m, k] cos(2 pi (n m / N + c k / C)), the real part of a transform over the
    N tokens and the C channels.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same; a map is read row by row.

    **Cost**: time N C log(N C); memory N C.

    **Args**:
        dim: channels C.

    **Raises**: ValueError for a dim below 1, and in `forward` for a mask.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("fourier", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: orthonormal scaling, (N C)^(-1/2), so that the output is of the size of the input at any N and
    float16 does not overflow; the paper's transform is not scaled.
    """

    card = Card(
        title="Fourier mixing", paper="2105.03824", year=2021, cost=(1, 1), mask=False,
        sizes={"tiny": {"dim": 8}, "base": {"dim": 64}, "odd": {"dim": 5}},
        differs="orthonormal scaling; the paper's transform is not scaled",
        cannot={"mask": "every frequency is one of the whole sequence: with tokens left out the transform is another one"})

    def __init__(self, dim: int):
        super().__init__(dim)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        exact = tokens.to(torch.promote_types(tokens.dtype, torch.float32))  # no transform of half precision
        return torch.fft.fft2(exact, dim=(1, 2), norm="ortho").real.to(tokens.dtype).contiguous()
