"""MaxViT: a mobile convolution, attention inside windows, and attention across the map on a sparse grid, one after the other."""

from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.ffn.mlp import MLP
from layerzoo.layers.attention.grid_attention import GridAttention
from layerzoo.layers.attention.window_attention import WindowAttention
from layerzoo.layers.base import TokenLayer, check_odd
from layerzoo.ops.token_maps import convolve, mean_token


class MaxViT(TokenLayer):
    """Multi-axis attention of MaxViT.

    **Paper**: MaxViT, arXiv 2204.01697.

    y = u_4 - x with u_1 = x + MBConv(x), u_2 = u_1 + A_block(LN(u_1)), u_3 = u_2 + MLP(LN(u_2)), u_4 = u_3 + A_grid(LN(u_3)).
    A_block attends inside windows of w x w places; A_grid among the places that are at the same place of their cells, when the map is
    cut into w x w cells. Both have a learned bias for each offset, of A_grid in cells. MBConv(x) = W_2 (s h), h = gelu(K * gelu(W_1 x))
    with K depthwise, and s = sigmoid(V_2 silu(V_1 mean(h))).

    **Shape**: (B, C, H, W) or (B, N, C) with `grid=` -> the same, any H and W.

    **Cost**: time N (w^2 C + C^2); memory N C + N w^2 h.

    **Args**:
        dim: channels C.
        window_size: w, places of a window and cells of the grid along a side; 7, the paper's.
        num_heads: h, of both attentions; None = one head per 32 channels, the paper's.
        expansion: hidden channels of the MBConv over C; 4, the paper's.
        kernel_size: of the MBConv, in places, odd; 3, the paper's.
        mlp_ratio: hidden channels of the MLP over C; 4, the paper's.
        qkv_bias: bias in q, k, v; on, the paper's.

    **Raises**: ValueError for a window_size below 1, num_heads that do not divide dim, a kernel_size that is not odd, and an expansion
    or mlp_ratio that leaves no hidden channel.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("maxvit", dim=64)(torch.randn(2, 64, 9, 5)).shape
        torch.Size([2, 64, 9, 5])

    **Differs from the paper**: what it adds to its input is returned, since the block adds it, and the last MLP is the block's; no batch
    norm in MBConv; on sides that w does not divide, windows and cells are padded by places nobody sees, and cells are ceil(H / w) high.
    """

    card = Card(
        title="Multi-axis attention of MaxViT", paper="2204.01697", year=2022, cost=(1, 1), needs_grid=True,
        sizes={"tiny": {"dim": 8, "num_heads": 2, "window_size": 4}, "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 5, "num_heads": 5, "window_size": 3, "expansion": 1.5, "mlp_ratio": 0.5, "qkv_bias": False}},
        differs="what it adds to its input is returned, the last MLP is the block's; no batch norm in MBConv; padding is seen by nobody",
        cannot={"padding": "the map is cut into cells by its sides, and padding makes larger cells"})

    def __init__(
        self, dim: int, *, window_size: int = 7, num_heads: int | None = None, expansion: float = 4.0, kernel_size: int = 3,
        mlp_ratio: float = 4.0, qkv_bias: bool = True,
    ):
        super().__init__(dim)
        check_odd("kernel_size", kernel_size)
        if dim * expansion < 1:
            raise bad_value("expansion", got=expansion, expected="a number that leaves the MBConv a channel", do="The paper's is 4.")
        self.conv = MBConv(dim, int(dim * expansion), kernel_size)
        self.block_norm = nn.LayerNorm(dim, eps=1e-6)
        self.block_attention = WindowAttention(dim, window_size=window_size, num_heads=num_heads, qkv_bias=qkv_bias)
        self.ffn_norm = nn.LayerNorm(dim, eps=1e-6)
        self.ffn = MLP(dim, mlp_ratio=mlp_ratio)
        self.grid_norm = nn.LayerNorm(dim, eps=1e-6)
        self.grid_attention = GridAttention(dim, window_size=window_size, num_heads=num_heads, qkv_bias=qkv_bias)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        y = self.conv(tokens, grid, mask)
        y = y + self.block_attention(self.block_norm(tokens + y), mask, grid)
        y = y + self.ffn(self.ffn_norm(tokens + y))
        return y + self.grid_attention(self.grid_norm(tokens + y), mask, grid)


class MBConv(nn.Module):
    """Inverted bottleneck with a depthwise convolution and a gate for each channel, on tokens."""

    def __init__(self, dim: int, hidden: int, kernel_size: int):
        super().__init__()
        self.expand = nn.Linear(dim, hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, kernel_size, padding=kernel_size // 2, groups=hidden)
        self.squeeze = nn.Linear(hidden, max(1, dim // 4))
        self.excite = nn.Linear(self.squeeze.out_features, hidden)
        self.project = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None) -> Tensor:
        hidden = F.gelu(convolve(self.depthwise, F.gelu(self.expand(tokens)), grid, mask))
        gate = self.excite(F.silu(self.squeeze(mean_token(hidden, mask)))).sigmoid()
        return self.project(hidden * gate)
