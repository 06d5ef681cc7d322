"""Identity: positions are not mixed at all, the baseline that shows what mixing brings."""

from torch import Tensor

from layerzoo.card import Card
from layerzoo.layers.base import TokenLayer


class Identity(TokenLayer):
    """The input itself.

    **Paper**: MetaFormer Baselines for Vision (IdentityFormer), arXiv 2210.13452.

    y = x.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same.

    **Cost**: none.

    **Args**:
        dim: channels C.

    **Raises**: ValueError for a dim below 1.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> x = torch.randn(2, 64, 7, 5)
        >>> torch.equal(lz.create_layer("identity", dim=64)(x), x)
        True

    **Differs from the paper**: nothing.
    """

    card = Card(
        title="Identity", paper="2210.13452", year=2022, cost=(0, 0), causal="always", symmetry="permutation",
        sizes={"tiny": {"dim": 8}, "base": {"dim": 64}, "odd": {"dim": 5}})

    def __init__(self, dim: int):
        super().__init__(dim)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        return tokens
