"""Token mixing of MLP-Mixer: an MLP over the positions, the same for every channel."""

from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import TokenLayer, check_grid
from layerzoo.ops.tables import resize_places


class MLPMixer(TokenLayer):
    """Token-mixing MLP.

    **Paper**: MLP-Mixer, arXiv 2105.01601.

    y[:, c] = W_2 gelu(W_1 x[:, c] + b_1) + b_2, with W_1 of D x N and W_2 of N x D.

    On a map of another size than `grid` each row of W_1, each column of W_2 and b_2 is resized bilinearly as a map, and W_1 is
    divided by the growth of N, so that W_1 x stays the same on an enlarged x.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same.

    **Cost**: time N C D; memory N C + C D; 2 N D parameters.

    **Args**:
        dim: channels C.
        grid: (H, W) the weights are built for.
        hidden_dim: D; None = half of dim, the paper's.

    **Raises**: ValueError for a grid that is not (H, W), a hidden_dim below 1, and in `forward` for tokens of another number than
    the grid's without `grid=`.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("mlp_mixer", dim=64, grid=(7, 5))(torch.randn(2, 64, 14, 10)).shape
        torch.Size([2, 64, 14, 10])

    **Differs from the paper**: runs at other sizes than it is built for; masked tokens count as zeros.
    """

    card = Card(
        title="MLP-Mixer token mixing", paper="2105.01601", year=2021, cost=(1, 1), needs_grid=True,
        sizes={"tiny": {"dim": 8, "grid": (3, 4)}, "base": {"dim": 64, "grid": (8, 8)}, "odd": {"dim": 5, "grid": (5, 3), "hidden_dim": 7}},
        differs="runs at other sizes than it is built for; masked tokens count as zeros",
        cannot={"padding": "every weight belongs to a place of the grid: a padded map is a larger grid with other weights"})

    def __init__(self, dim: int, *, grid: tuple[int, int], hidden_dim: int | None = None):
        super().__init__(dim)
        self.grid = check_grid(grid)
        hidden_dim = max(1, dim // 2) if hidden_dim is None else hidden_dim
        if hidden_dim < 1:
            raise bad_value("hidden_dim", got=hidden_dim, expected="a whole number >= 1, or None", do="None takes half of dim.")
        length = self.grid[0] * self.grid[1]
        self.fc1 = nn.Linear(length, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, length)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        growth = tokens.shape[1] / self.fc1.in_features
        w1 = resize_places(self.fc1.weight, self.grid, grid) / growth
        w2 = resize_places(self.fc2.weight.t(), self.grid, grid).t()
        b2 = resize_places(self.fc2.bias, self.grid, grid)
        hidden = F.gelu(F.linear(tokens.transpose(1, 2), w1, self.fc1.bias))
        return F.linear(hidden, w2, b2).transpose(1, 2).contiguous()
