"""Twins attention: inside windows first, then from every position to a smaller map."""

from torch import Tensor

from layerzoo.card import Card
from layerzoo.layers.attention.spatial_reduction import SpatialReduction
from layerzoo.layers.base import TokenLayer, check_choice
from layerzoo.layers.efficient.image_transformer import ImageTransformer
from layerzoo.ops.token_maps import check_count


class Twins(TokenLayer):
    """Locally-grouped and global sub-sampled attention.

    **Paper**: Twins, arXiv 2104.13840 (Twins-SVT).

    y = L(x) + G(x + L(x)): L is softmax attention inside windows of w x w places, G is softmax attention from every position to one
    key and value of each r x r places, LayerNorm(conv(x)) with kernel and stride r. kind="local" is L(x) alone, "global" G(x) alone.

    **Shape**: (B, C, H, W) or (B, N, C) with `grid=` -> the same, any H and W.

    **Cost**: time N^2 C / r^2 + N w^2 C + N C^2; memory N C.

    **Args**:
        dim: channels C.
        kind: "both", "local" or "global"; both, or a model alternates the two others, as the paper's does.
        window_size: w, in positions; 7, the paper's.
        reduction: r, side of a cell in positions; 4, the paper's at its second of four resolutions (8, 4, 2, 1).
        num_heads: h of each; None = one head per 32 channels, the paper's.
        qkv_bias: bias in q, k, v; on, as in the paper's code.

    **Raises**: ValueError for an unknown kind, a window_size or reduction below 1 and num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("twins", dim=64, window_size=4)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: with both, what the two add to their input, without the norm and the per-position unit between them.
    Sides that w or r does not divide are padded, and the padding is seen by no window (there it is, as zeros).
    """

    card = Card(
        title="Locally-grouped and global attention (Twins)", paper="2104.13840", year=2021, cost=(2, 1), needs_grid=True,
        sizes={"tiny": {"dim": 8, "num_heads": 2, "window_size": 2, "reduction": 2}, "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 15, "num_heads": 3, "window_size": 3, "reduction": 4, "qkv_bias": False}},
        differs="with both, the norm and the per-position unit between the two are not here; padding is seen by no window")

    def __init__(
        self, dim: int, *, kind: str = "both", window_size: int = 7, reduction: int = 4, num_heads: int | None = None,
        qkv_bias: bool = True,
    ):
        super().__init__(dim)
        check_choice("kind", kind, ("both", "local", "global"))
        check_count("window_size", window_size)
        check_count("reduction", reduction)
        window, heads = (window_size, window_size), {"num_heads": num_heads, "qkv_bias": qkv_bias}
        self.near = None if kind == "global" else ImageTransformer(dim, block_size=window, memory=(0, 0), **heads)
        self.far = None if kind == "local" else SpatialReduction(dim, reduction=reduction, **heads)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        if self.near is None:
            return self.far(tokens, mask, grid)
        y = self.near(tokens, mask, grid)
        return y if self.far is None else y + self.far(tokens + y, mask, grid)
