"""Ghost convolution: some channels are computed from all, the others are cheap filtered copies of those."""

import torch
from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import Layer, check_odd


class GhostConv(Layer):
    """Ghost module.

    **Paper**: GhostNet, arXiv 1911.11907.

    y = [z, V * z], z = W * x, with W a convolution to m = C / s channels, rounded up, V a depthwise one that makes s - 1 ghosts of each
    channel of z, of which as many are kept as C has room for, and x = z = 0 outside the map.

    **Shape**: (B, C, H, W) -> the same.

    **Cost**: time N C (C k^2 / s + d^2 (s - 1) / s); memory N C.

    **Args**:
        dim: channels C.
        ratio: s, channels out per channel that is computed from all; 2, the paper's. With 1 there are no ghosts.
        kernel_size: k of W, in positions, odd; 1, the paper's in GhostNet.
        ghost_kernel_size: d of V, in positions, odd; 3, the paper's.
        bias: of both; on, since no batch norm follows.

    **Raises**: ValueError for a ratio that is not from 1 to dim, and for kernel sizes that are not odd.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("ghost_conv", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: no batch norm and no ReLU after W and V, as in its formula; its code has both, and no ReLU in every
    second module.
    """

    card = Card(
        title="Ghost module", paper="1911.11907", year=2019, cost=(1, 1), mask=False, needs_grid=True, symmetry="translation",
        sizes={"tiny": {"dim": 8}, "base": {"dim": 64},
               "odd": {"dim": 5, "ratio": 3, "kernel_size": 3, "ghost_kernel_size": 5, "bias": False}},
        limit={"equals": "conv", "options": {"ratio": 1, "kernel_size": 3}, "grid": (4, 6)},
        differs="no batch norm and no ReLU after either convolution",
        cannot={"mask": "it is a layer of maps, and a map has no places to leave out"})

    def __init__(self, dim: int, *, ratio: int = 2, kernel_size: int = 1, ghost_kernel_size: int = 3, bias: bool = True):
        super().__init__(dim)
        if not 1 <= ratio <= dim:
            raise bad_value(
                "ratio", got=ratio, expected=f"1 to dim={dim} channels out per computed one", do="The paper has 2; 1 is without ghosts.")
        check_odd("kernel_size", kernel_size)
        check_odd("ghost_kernel_size", ghost_kernel_size)
        computed = -(-dim // ratio)
        self.conv = nn.Conv2d(dim, computed, kernel_size, padding=kernel_size // 2, bias=bias)
        self.ghost = None
        if ratio > 1:
            self.ghost = nn.Conv2d(
                computed, computed * (ratio - 1), ghost_kernel_size, padding=ghost_kernel_size // 2, groups=computed, bias=bias)

    def mix(self, x: Tensor) -> Tensor:
        z = self.conv(x)
        return z if self.ghost is None else torch.cat([z, self.ghost(z)[:, : self.dim - z.shape[1]]], 1)
