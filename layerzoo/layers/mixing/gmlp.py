"""gMLP: half of the hidden channels, mixed over the positions by one matrix, gate the other half."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.ffn.mlp import check_hidden
from layerzoo.layers.base import TokenLayer, check_grid
from layerzoo.ops.attention import attend
from layerzoo.ops.tables import resize_pairs, resize_places


class GMLP(TokenLayer):
    """MLP with a spatial gating unit. It has its own channel projections: use it with ffn="none".

    **Paper**: Pay Attention to MLPs, arXiv 2105.08050.

    y = V (u * (W v + b)), u = gelu(U_1 x), v = norm(gelu(U_2 x)): W (N, N) and b mix the positions of v, the same for every channel, and
    U_1, U_2 and V mix channels. With attention_dim = a (aMLP) a single head of attention of width a is added to the gate W v + b.

    On a map of another size than `grid` both axes of W and b are resized bilinearly as maps, and W is divided by the growth of N, so
    that W v stays the same on an enlarged v. With causal, W is lower triangular.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same.

    **Cost**: time N^2 C r / 2 + 1.5 N C^2 r for r = mlp_ratio; memory N C r at the built size, plus N^2 at others; N^2 parameters beside
    the projections. Attention adds time N^2 a and memory N a.

    **Args**:
        dim: channels C.
        grid: (H, W) the weights are built for.
        mlp_ratio: hidden channels, of u and v together, over C; 6, the paper's for images.
        attention_dim: a, width of the attention; 0 = none, as in gMLP. The paper's aMLP has 64.
        causal: position i sees positions up to i, in row-major order.

    **Raises**: ValueError for a grid that is not (H, W), an mlp_ratio that leaves no channel, an attention_dim below 0, and in `forward`
    for tokens of another number than the grid's without `grid=`.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("gmlp", dim=64, grid=(7, 5))(torch.randn(2, 64, 14, 10)).shape
        torch.Size([2, 64, 14, 10])

    **Differs from the paper**: runs at other sizes than it is built for, and causally; masked tokens count as zeros in v.
    """

    card = Card(
        title="gMLP", paper="2105.08050", year=2021, cost=(2, 2), causal=True, needs_grid=True,
        sizes={"tiny": {"dim": 8, "grid": (3, 4), "mlp_ratio": 2}, "base": {"dim": 64, "grid": (8, 8)},
               "odd": {"dim": 5, "grid": (5, 3), "mlp_ratio": 3, "attention_dim": 4}},
        limit={"equals": "mlp", "options": {"grid": (4, 6), "mlp_ratio": 8}, "grid": (4, 6),
               "set": {"spatial.weight": "zeros", "spatial.bias": "ones"}},
        differs="runs at other sizes than it is built for, and causally; masked tokens count as zeros",
        cannot={"padding": "every weight belongs to a place of the grid: a padded map is a larger grid with other weights"})

    def __init__(self, dim: int, *, grid: tuple[int, int], mlp_ratio: float = 6.0, attention_dim: int = 0, causal: bool = False):
        super().__init__(dim)
        self.grid, self.causal = check_grid(grid), causal
        hidden, length = check_hidden(mlp_ratio, dim * mlp_ratio / 2), grid[0] * grid[1]
        if attention_dim < 0:
            raise bad_value("attention_dim", got=attention_dim, expected="a whole number >= 0", do="The paper's is 64; 0 is none.")
        self.fc1, self.fc_gate = nn.Linear(dim, hidden), nn.Linear(dim, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.spatial = nn.Linear(length, length)
        nn.init.normal_(self.spatial.weight, std=1e-6)  # the gate starts at 1, as the paper found necessary
        nn.init.ones_(self.spatial.bias)
        self.attention_dim = attention_dim
        if attention_dim:
            self.qkv, self.attention_proj = nn.Linear(dim, 3 * attention_dim), nn.Linear(attention_dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        u = F.gelu(self.fc1(tokens))
        v = self.norm(F.gelu(self.fc_gate(tokens)).transpose(0, 1))  # (N, B, D): one product with W for all samples and channels
        v = v if mask is None else v * mask.T.unsqueeze(-1)
        bias = resize_places(self.spatial.bias, self.grid, grid).unsqueeze(-1)
        gate = torch.addmm(bias, self.weight_at(grid), v.flatten(1)).unflatten(1, v.shape[1:]).transpose(0, 1)
        if self.attention_dim:
            q, k, value = self.qkv(tokens).unsqueeze(1).chunk(3, -1)
            gate = gate + self.attention_proj(attend(q, k, value, mask, causal=self.causal).squeeze(1))
        return self.fc2(u * gate)

    def weight_at(self, grid: tuple[int, int]) -> Tensor:
        """W for a map of this size."""
        weight = self.spatial.weight.tril() if self.causal else self.spatial.weight
        if grid == self.grid:
            return weight
        weight = resize_pairs(weight, self.grid, grid) * (len(weight) / (grid[0] * grid[1]))
        return weight.tril() if self.causal else weight
