"""ACmix: one projection to queries, keys and values serves both attention over a neighbourhood and a convolution made of shifts."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.layers.base import HeadsLayer, check_odd, map_to_tokens
from layerzoo.ops.neighborhoods import neighbourhoods, real_places, seen_near
from layerzoo.ops.token_maps import join_places
from layerzoo.ops.windows import attend_blocks, blocks_2d, windows_2d


class ACmix(HeadsLayer):
    """Self-attention and convolution from shared projections.

    **Paper**: On the Integration of Self-Attention and Convolution, arXiv 2111.14556.

    y = W_o (alpha A + beta S). A_i = concat_h(sum_j softmax_j(q_i . (k_j + P (i - j)) / sqrt(d)) v_j), j over the K x K around i, i - j in
    units of half the neighbourhood. S convolves: for each channel of a head, a linear map F, the same for all, makes K_s^2
    numbers of the 3 h in q, k, v, and a convolution of K_s x K_s makes h channels of those; it starts as the shifts.

    **Shape**: (B, C, H, W) or (B, N, C) with `grid=` -> the same, any H and W.

    **Cost**: time N C (4 K^2 + 3 h K_s^2) + N C^2; memory N (C + K^2).

    **Args**:
        dim: channels C.
        num_heads: h; None = one head per 32 channels (the paper's code has 4).
        kernel_size: K of the attention in positions, odd; 7, the paper's.
        shift_size: K_s of the convolution in positions, odd; 3, the paper's.
        qkv_bias: bias in q, k, v; on, as in the paper's code.

    **Raises**: ValueError for an even kernel_size or shift_size and num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("acmix", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: has the output projection W_o; places beyond the border are seen by nobody (there they are reflections);
    offsets are measured by the neighbourhood, in its code by the map. F and the convolution after it are one convolution here, with the
    same result.
    """

    card = Card(
        title="ACmix", paper="2111.14556", year=2021, cost=(1, 1), needs_grid=True, symmetry="translation",
        sizes={"tiny": {"dim": 8, "num_heads": 2, "kernel_size": 3}, "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 15, "num_heads": 3, "kernel_size": 5, "shift_size": 5, "qkv_bias": False}},
        limit={"equals": "mhsa", "options": {"kernel_size": 13}, "grid": (4, 6),
               "set": {"alpha": "ones", "beta": "zeros", "position.weight": "zeros"}},
        differs="has an output projection; nobody sees beyond the border; offsets are measured by the neighbourhood")

    def __init__(
        self, dim: int, *, num_heads: int | None = None, kernel_size: int = 7, shift_size: int = 3, qkv_bias: bool = True,
    ):
        super().__init__(dim, num_heads, qkv_bias)
        check_odd("kernel_size", kernel_size)
        check_odd("shift_size", shift_size)
        self.kernel_size, kernels = kernel_size, shift_size**2
        self.position = nn.Linear(2, self.head_dim, bias=False)  # P
        self.combine = nn.Linear(3 * self.num_heads, kernels, bias=False)  # F
        self.shift = nn.Conv2d(self.head_dim * kernels, dim, shift_size, padding=shift_size // 2, groups=self.head_dim)
        nn.init.zeros_(self.shift.bias)
        with torch.no_grad():
            self.shift.weight.copy_(torch.eye(kernels).unflatten(1, (shift_size, shift_size)).expand(dim, -1, -1, -1))
        self.alpha, self.beta = (nn.Parameter(torch.tensor(0.5)) for _ in range(2))

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        qkv = self.qkv(tokens)
        if mask is not None:
            qkv = qkv * mask.unsqueeze(-1)  # as the padding of the convolution
        return self.proj(self.alpha * self.attend(qkv, grid, mask) + self.beta * self.convolve(qkv, grid))

    def convolve(self, qkv: Tensor, grid: tuple[int, int]) -> Tensor:
        """S: F and the convolution after it, as one convolution of the 3 h numbers of each channel."""
        weight = torch.einsum("cmyx,mg->cgyx", self.shift.weight, self.combine.weight)
        x = qkv.unflatten(2, (-1, self.head_dim)).permute(0, 3, 2, 1).flatten(1, 2).unflatten(2, grid)
        return map_to_tokens(F.conv2d(x, weight, self.shift.bias, padding=self.shift.padding, groups=self.head_dim))

    def attend(self, qkv: Tensor, grid: tuple[int, int], mask: Tensor | None) -> Tensor:
        """A: blocks of queries, each over the places within reach of any of its queries."""
        cut = size, span, margin = neighbourhoods(grid, self.kernel_size)
        q, kv = qkv.unflatten(1, grid).tensor_split((self.dim,), dim=-1)
        keys = (torch.arange(s, device=qkv.device) - m for s, m in zip(span, margin))
        places = torch.stack(torch.meshgrid(*keys, indexing="ij"), -1).flatten(0, 1).to(self.position.weight.dtype)
        scores = self.position(places / max(self.kernel_size // 2, 1)).repeat(1, self.num_heads)  # P j: that of i is the same for all keys
        kv = windows_2d(kv, *cut) - F.pad(scores, (0, self.dim)).to(kv.dtype)
        seen = seen_near(real_places(qkv, grid, mask), cut, self.kernel_size)
        return join_places(attend_blocks(blocks_2d(q, size), kv, self.num_heads, seen).transpose(1, 2), grid, size)
