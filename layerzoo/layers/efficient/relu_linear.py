"""ReLU linear attention of EfficientViT: linear attention beside copies of it on locally aggregated tokens."""

import torch
from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.layers.base import HeadsLayer, as_map, check_odd, map_to_tokens
from layerzoo.ops.linear_recurrence import full_precision, linear_attention, no_autocast


class ReluLinear(HeadsLayer):
    """Multi-scale ReLU linear attention.

    **Paper**: EfficientViT, arXiv 2205.14756.

    y_i = W_o concat over scales s and heads h (relu(q_i) S / (relu(q_i) . z + eps)), S = sum_j relu(k_j) v_j^T, z = sum_j relu(k_j).
    Scale 1 takes q, k, v as projected; each further scale K aggregates them by a K x K depthwise convolution and a linear map
    within each head of q, of k and of v.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same.

    **Cost**: time N C (d + K^2) and N C^2; memory N C per scale.

    **Args**:
        dim: channels C.
        num_heads: h; None = one head per 32 channels.
        kernel_sizes: K of each further scale in positions; (5,), the paper's; () leaves plain ReLU linear attention.
        qkv_bias: bias in q, k, v; off, as in the paper's code.
        eps: added to the normaliser; 1e-15, the paper's code.

    **Raises**: ValueError for an even kernel size and for num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("relu_linear", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: no batch norm after the output projection, since the block normalises before the layer.
    """

    card = Card(
        title="ReLU linear attention of EfficientViT", paper="2205.14756", year=2022, cost=(1, 1), needs_grid=True,
        sizes={"tiny": {"dim": 8, "num_heads": 2, "kernel_sizes": (3,)}, "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 15, "num_heads": 3, "kernel_sizes": (3, 5), "qkv_bias": True}},
        differs="no batch norm after the output projection")

    def __init__(
        self, dim: int, *, num_heads: int | None = None, kernel_sizes: tuple[int, ...] = (5,), qkv_bias: bool = False, eps: float = 1e-15,
    ):
        super().__init__(dim, num_heads, qkv_bias)
        for size in kernel_sizes:
            check_odd("kernel_sizes", size)
        self.eps = eps
        self.scales = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(3 * dim, 3 * dim, size, padding=size // 2, groups=3 * dim, bias=False),
                nn.Conv2d(3 * dim, 3 * dim, 1, groups=3 * self.num_heads, bias=False)) for size in kernel_sizes)
        self.proj = nn.Linear(dim * (1 + len(kernel_sizes)), dim)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        qkv = self.qkv(tokens)
        if mask is not None:
            qkv = qkv * mask.unsqueeze(-1)  # as zero padding is to the convolutions
        places = as_map(qkv, grid)
        scales = [qkv, *(map_to_tokens(scale(places)) for scale in self.scales)]
        return self.proj(torch.cat([self._attend(scale, mask) for scale in scales], -1))

    def _attend(self, qkv: Tensor, mask: Tensor | None) -> Tensor:
        """Linear attention of one scale (B, N, 3 C), heads joined: (B, N, C)."""
        q, k, v = full_precision(*self.split_heads(qkv))
        k = k.relu() if mask is None else k.relu() * mask[:, None, :, None]
        with no_autocast(qkv.device):
            return linear_attention(q.relu(), k, v, self.eps).transpose(1, 2).flatten(2).to(qkv.dtype)
