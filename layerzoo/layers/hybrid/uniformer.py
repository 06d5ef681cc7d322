"""UniFormer: one form for both of its relation aggregators, a local one with learned weights and a global one by attention."""

from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.layers.base import HeadsLayer, check_choice, check_odd
from layerzoo.ops.attention import attend
from layerzoo.ops.token_maps import convolve


class UniFormer(HeadsLayer):
    """Multi-head relation aggregator (MHRA) with dynamic position encoding (DPE).

    **Paper**: UniFormer, arXiv 2201.09450.

    y = p + W_o concat_h(A_h V_h(z)), z = x + p, p = D * x: D is a depthwise 3 x 3 convolution and V_h linear. Relations A_h are

    - global: softmax(Q_h(z) K_h(z)^T / sqrt(d)), as in self-attention,
    - local: A_h[i, j] = a[i - j] for j in the k x k places around i, learned for each channel: a depthwise convolution.

    **Shape**: (B, C, H, W) or (B, N, C) with `grid=` -> the same.

    **Cost**: time N^2 C + N C^2, local N C (k^2 + C); memory N C.

    **Args**:
        dim: channels C.
        kind: "global", the paper's for its two last stages, or "local", for its first two; global, which makes a model of one stage.
        num_heads: h, global alone; None = one head per 32 channels (the paper has 64 channels a head).
        kernel_size: k, local alone, in places, odd; 5, the paper's.
        qkv_bias: bias in q, k and v, or v alone; on, the paper's.

    **Raises**: ValueError for an unknown kind, num_heads that do not divide dim and a kernel_size that is not odd.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("uniformer", dim=64, kind="local")(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: the norm is the block's, before the position encoding; there it comes after. What the layer adds to its
    input is returned, since the block adds it.
    """

    card = Card(
        title="Relation aggregator of UniFormer", paper="2201.09450", year=2022, cost=(2, 1), needs_grid=True,
        sizes={"tiny": {"dim": 8, "num_heads": 2}, "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 5, "kind": "local", "kernel_size": 3, "qkv_bias": False}},
        limit={"equals": "mhsa", "grid": (4, 6), "set": {"position.weight": "zeros", "position.bias": "zeros"}},
        differs="the norm comes before the position encoding, not after; what the layer adds to its input is returned")

    def __init__(
        self, dim: int, *, kind: str = "global", num_heads: int | None = None, kernel_size: int = 5, qkv_bias: bool = True,
    ):
        super().__init__(dim, num_heads, qkv_bias)
        check_choice("kind", kind, ("global", "local"))
        check_odd("kernel_size", kernel_size)
        self.position = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.relation = None
        if kind == "local":
            self.qkv = nn.Linear(dim, dim, bias=qkv_bias)  # values alone
            self.relation = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        position = convolve(self.position, tokens, grid)  # masked tokens arrive as zeros
        z = tokens + position
        if self.relation is None:
            return position + self.merge(attend(*self.split(z), mask))
        return position + self.proj(convolve(self.relation, self.qkv(z), grid, mask))
