"""Charformer: every position chooses softly among the blocks of all sizes that hold it, then neighbours are averaged."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.downsample.base import Downsample
from layerzoo.errors import bad_value
from layerzoo.layers.base import check_odd, map_to_tokens, tokens_to_map
from layerzoo.ops.attention import attend


class Charformer(Downsample):
    """Gradient-based subword tokenisation (GBST), on a map.

    **Paper**: Charformer, arXiv 2106.12672.

    y = W mean over 2x2 of sum_b p_b(i) X_b(i), p(i) = softmax over b of w . X_b(i), b = 1 ... M, where X_b(i) is the mean of conv(x)
    over the block of b x b positions that holds i. At a border a mean is of the positions that there are.

    With calibrate, P of all p(i) becomes softmax(P P^T) P: positions with like scores agree on one.

    **Shape**: (B, C, H, W) -> (B, C_out, ceil(H / 2), ceil(W / 2)).

    **Cost**: time N C (K^2 + M) + N C C_out / 4; memory N (C + M). With calibrate, N^2 M more time.

    **Args**:
        dim: channels C.
        dim_out: channels C_out.
        max_block_size: M; 4, the paper's.
        kernel_size: side K of the convolution that tells positions apart before blocks are formed, odd; 5, the paper's.
        calibrate: the paper's score calibration; off, since it is optional there and takes N^2 time.

    **Raises**: ValueError for a dim, dim_out or max_block_size below 1, a kernel_size that is not odd, and for an input that is not
    (B, C, H, W).

    **Example**:
        >>> import torch
        >>> Charformer(64, 128)(torch.randn(2, 64, 7, 6)).shape
        torch.Size([2, 128, 4, 3])

    **Differs from the paper**: squares on a map for spans of a text, so N falls to a quarter; the convolution is depthwise; no blocks at
    offsets, which the paper too leaves to the convolution; W where C_out differs from C.
    """

    card = Card(
        title="Charformer (GBST)", paper="2106.12672", year=2021, survey="DS", cost=(1, 1), mask=False, needs_grid=True,
        sizes={"tiny": {"dim": 8, "dim_out": 16, "max_block_size": 3, "kernel_size": 3}, "base": {"dim": 64, "dim_out": 128},
               "odd": {"dim": 5, "dim_out": 5, "calibrate": True}},
        differs="squares on a map for spans of a text; a depthwise convolution; no offsets; a projection where channels differ",
        cannot={"mask": "it is a unit of maps, and a map has no places to leave out"})

    def __init__(self, dim: int, dim_out: int, *, max_block_size: int = 4, kernel_size: int = 5, calibrate: bool = False):
        super().__init__(dim, dim_out)
        if max_block_size < 1:
            raise bad_value("max_block_size", got=max_block_size, expected="a whole number of positions >= 1", do="The paper's is 4.")
        check_odd("kernel_size", kernel_size)
        self.max_block_size, self.calibrate = max_block_size, calibrate
        self.conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.score = nn.Conv2d(dim, 1, 1, bias=False)  # a bias would cancel in the softmax
        self.proj = nn.Linear(dim, dim_out) if dim != dim_out else nn.Identity()

    def reduce(self, x: Tensor) -> Tensor:
        x = self.conv(x).contiguous(memory_format=torch.channels_last)  # means and products are fastest in it
        blocks = {b: _mean(x, b) for b in range(1, self.max_block_size + 1)}
        weights = torch.cat([_repeat(self.score(block), b, x) for b, block in blocks.items()], 1).softmax(1)
        if self.calibrate:
            rows = map_to_tokens(weights).unsqueeze(1).contiguous()  # or the attention is not fused
            agreed = attend(rows * self.max_block_size**0.5, rows, rows)  # the root undoes the scale of attention
            weights = tokens_to_map(agreed.squeeze(1), weights)
        cells = _mean(weights, 2)
        y = weights[:, :1] * x
        for b in range(3, self.max_block_size + 1, 2):
            y = y + weights[:, b - 1: b] * _repeat(blocks[b], b, y)
        y = _mean(y, 2)
        for b in range(2, self.max_block_size + 1, 2):  # these hold whole cells of 2x2, so the weights can be averaged first
            y = y + cells[:, b - 1: b] * _repeat(blocks[b], b // 2, y)
        return self.proj(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _mean(x: Tensor, size: int) -> Tensor:
    """The mean of each square of this size, at a border of the places that there are."""
    return F.avg_pool2d(x, size, ceil_mode=True) if size > 1 else x


def _repeat(blocks: Tensor, size: int, like: Tensor) -> Tensor:
    """To each place of the map `like` the block of this size that holds it."""
    return F.interpolate(blocks, scale_factor=float(size))[..., : like.shape[2], : like.shape[3]] if size > 1 else blocks
