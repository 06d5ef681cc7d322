"""TokenLearner: the map becomes a fixed number of tokens, each a mean of all positions under weights of its own."""

from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.downsample.base import Downsample, squarest
from layerzoo.layers.base import as_map, check_choice, map_to_tokens
from layerzoo.ops.learned_tokens import LearnedTokens
from layerzoo.ops.token_maps import check_count


class TokenLearner(Downsample):
    """k tokens whatever the size of the map.

    **Paper**: TokenLearner: What Can 8 Learned Tokens Do for Images and Videos?, arXiv 2106.11297.

    z_s = W sum_i a_is x_i, with n = LayerNorm(x) and the k maps a one of

    - softmax over the positions of W_2 gelu(W_1 n_i + b_1),
    - sigmoid(conv(n)) / N, conv four 3x3 convolutions of k channels with GELU between them.

    The tokens are laid out as the most square map of k places, H' <= W', in which a place is a token's number and no longer a place
    in the image. W is there only where C_out differs from C.

    **Shape**: (B, C, H, W) -> (B, C_out, H', W'), H' W' = k.

    **Cost**: time N C (D + k) with softmax, N C k with sigmoid; memory N (C + D), N (C + k); D hidden channels.

    **Args**:
        dim: channels C.
        dim_out: channels C_out.
        num_tokens: k; 8, the paper's.
        maps: "softmax" or "sigmoid"; softmax, the code's version 1.1, better by its account; sigmoid is the paper's own.
        hidden_dim: D, hidden channels of the softmax maps; 64, the paper's code.

    **Raises**: ValueError for a dim, dim_out, num_tokens or hidden_dim below 1, unknown maps, and for an input that is not (B, C, H, W).

    **Example**:
        >>> import torch
        >>> TokenLearner(64, 128, num_tokens=8)(torch.randn(2, 64, 7, 6)).shape
        torch.Size([2, 128, 2, 4])

    **Differs from the paper**: a projection where C_out differs from C; sigmoid maps take the mean over positions, as in the text (the
    code takes the sum by default).
    """

    card = Card(
        title="TokenLearner", paper="2106.11297", year=2021, survey="DS", cost=(1, 1), mask=False, needs_grid=True,
        sizes={"tiny": {"dim": 8, "dim_out": 16, "num_tokens": 6, "hidden_dim": 6}, "base": {"dim": 64, "dim_out": 128},
               "odd": {"dim": 5, "dim_out": 5, "num_tokens": 7, "maps": "sigmoid"}},
        differs="a projection where the channels differ; sigmoid maps take the mean over positions, where the code takes the sum",
        cannot={"mask": "it is a unit of maps, and a map has no places to leave out"})

    def __init__(self, dim: int, dim_out: int, *, num_tokens: int = 8, maps: str = "softmax", hidden_dim: int = 64):
        super().__init__(dim, dim_out)
        check_choice("maps", maps, ("softmax", "sigmoid"))
        check_count("num_tokens", num_tokens, "TokenLearner's is 8.")
        self.num_tokens, self.maps = num_tokens, maps
        self.norm = nn.LayerNorm(dim)
        if maps == "softmax":
            self.learner = LearnedTokens(dim, num_tokens, hidden_dim)
        else:
            convs = [nn.Conv2d(dim if i == 0 else num_tokens, num_tokens, 3, padding=1, bias=False) for i in range(4)]
            self.convs = nn.Sequential(convs[0], nn.GELU(), convs[1], nn.GELU(), convs[2], nn.GELU(), convs[3])
        self.proj = nn.Linear(dim, dim_out) if dim != dim_out else nn.Identity()

    def out_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """The most square (rows, columns) of num_tokens places, rows <= columns, for any grid."""
        return squarest(self.num_tokens)

    def reduce(self, x: Tensor) -> Tensor:
        values = map_to_tokens(x)
        normed = self.norm(values)
        if self.maps == "softmax":
            tokens = self.learner(normed, values)
        else:
            gates = self.convs(as_map(normed, x.shape[2:])).sigmoid().flatten(2)
            tokens = gates / gates.shape[2] @ values
        return as_map(self.proj(tokens), self.out_grid(x.shape[2:]))
