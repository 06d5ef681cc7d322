"""EdgeNeXt: convolutions whose reach grows from one group of channels to the next, then attention between channels."""

import torch
from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import TokenLayer, as_map, check_odd, map_to_tokens
from layerzoo.layers.efficient.xcit import XCiT
from layerzoo.ops.token_maps import convolve
from layerzoo.positions.fourier2d import Fourier2D


class EdgeNeXt(TokenLayer):
    """Split depth-wise transpose attention (SDTA).

    **Paper**: EdgeNeXt, arXiv 2206.10589.

    y = z + XCA(LN(z)), z = [z_1, ..., z_s], z_1 = K_1 * x_1, z_i = K_i * (z_{i-1} + x_i), z_s = x_s: the channels of x in s groups,
    with depthwise k x k convolutions K_i, and XCA the cross-covariance attention of XCiT. With fourier, z has the positions of Fourier2D
    added.

    **Shape**: (B, C, H, W) or (B, N, C) with `grid=` -> the same.

    **Cost**: time N C (d + k^2) + N C^2; memory N C.

    **Args**:
        dim: channels C.
        num_scales: s, groups of channels, all of ceil(C / s) but the last; 4, the paper's in its last stage (2 and 3 before).
        num_heads: h; None = one head per 32 channels (the paper has 4 or 8 throughout).
        kernel_size: k, in places, odd; 3, the paper's.
        qkv_bias: bias in q, k, v; on, the paper's.
        fourier: positions; off, on in the second stage of the paper.

    **Raises**: ValueError for num_scales that do not leave each group a channel, num_heads that do not divide dim and a kernel_size
    that is not odd.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("edgenext", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: the MLP that follows and the residual around both are the block's; no layer scale on XCA, which folds
    into its output projection.
    """

    card = Card(
        title="Split depth-wise transpose attention of EdgeNeXt", paper="2206.10589", year=2022, cost=(1, 1), needs_grid=True,
        sizes={"tiny": {"dim": 8, "num_heads": 2}, "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 15, "num_heads": 3, "num_scales": 2, "kernel_size": 5, "qkv_bias": False}},
        differs="the MLP and the residual around it are the block's; no layer scale on the attention")

    def __init__(
        self, dim: int, *, num_scales: int = 4, num_heads: int | None = None, kernel_size: int = 3, qkv_bias: bool = True, fourier: bool = False,
    ):
        super().__init__(dim)
        check_odd("kernel_size", kernel_size)
        self.width = -(-dim // max(num_scales, 1))
        if num_scales < 2 or self.width * (num_scales - 1) >= dim:
            expected = f"2 or more groups of ceil({dim} / num_scales) channels, the last one shorter but not empty"
            raise bad_value("num_scales", got=num_scales, expected=expected, do="The paper's are 2, 3 and 4.")
        self.convs = nn.ModuleList(
            nn.Conv2d(self.width, self.width, kernel_size, padding=kernel_size // 2, groups=self.width) for _ in range(num_scales - 1))
        self.position = Fourier2D(dim) if fourier else None
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.attention = XCiT(dim, num_heads=num_heads, qkv_bias=qkv_bias)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        *groups, last = tokens.split(self.width, -1)
        scales = []
        for conv, group in zip(self.convs, groups):
            scales.append(convolve(conv, scales[-1] + group if scales else group, grid, mask))
        z = torch.cat((*scales, last), -1)
        if self.position is not None:
            z = map_to_tokens(self.position(as_map(z, grid)))
        return z + self.attention(self.norm(z), mask)
