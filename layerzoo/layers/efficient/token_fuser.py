"""TokenLearner and TokenFuser: all positions become a few tokens, these attend to each other, and every position reads them back."""

from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.layers.attention.mhsa import MHSA
from layerzoo.layers.base import TokenLayer
from layerzoo.ops.learned_tokens import LearnedTokens


class TokenFuser(TokenLayer):
    """Attention among k learned tokens in place of attention among N positions.

    **Paper**: TokenLearner: What Can 8 Learned Tokens Do for Images and Videos?, arXiv 2106.11297.

    y_i = sum_s b_is (M Z')_s, Z' = Z + MHSA(LayerNorm(Z)), Z = softmax_N(W_2 gelu(W_1 x + b_1))^T x, b_i = sigmoid(W_b x_i + b_b);
    Z and Z' are (k, C), M (k, k) mixes the tokens, b_i are the k gates of position i.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same.

    **Cost**: time N C (D + 3 k) + k C^2; memory N (C + D + k), D hidden channels of the maps.

    **Args**:
        dim: channels C.
        num_tokens: k; 8, the paper's.
        hidden_dim: D, hidden channels of the maps that learn the tokens; 64, the paper's code.
        num_heads: h of the attention among the tokens; None = one head per 32 channels.
        qkv_bias: bias in q, k, v of that attention; on, as in ViT.

    **Raises**: ValueError for num_tokens or hidden_dim below 1, and num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("token_fuser", dim=64, num_tokens=4)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: a layer, so the transformer block between learner and fuser is its attention alone, and the residual of
    the map and the norm of x are the block's around it. The maps are those of the code's version 1.1, the gates are linear as in the
    text (the code has an MLP), M starts at random (in the code at zero, between two norms, which sum pooling needs and means do not).
    """

    card = Card(
        title="TokenLearner and TokenFuser", paper="2106.11297", year=2021, survey="DS", cost=(1, 1), symmetry="permutation",
        sizes={"tiny": {"dim": 8, "num_tokens": 3, "hidden_dim": 6, "num_heads": 2}, "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 15, "num_tokens": 5, "hidden_dim": 7, "num_heads": 3, "qkv_bias": False}},
        differs="a layer: between learner and fuser the attention alone of a transformer block; maps of version 1.1, no norms in the fuser")

    def __init__(self, dim: int, *, num_tokens: int = 8, hidden_dim: int = 64, num_heads: int | None = None, qkv_bias: bool = True):
        super().__init__(dim)
        self.learner = LearnedTokens(dim, num_tokens, hidden_dim)
        self.norm = nn.LayerNorm(dim)
        self.attention = MHSA(dim, num_heads=num_heads, qkv_bias=qkv_bias)
        self.mixer = nn.Linear(num_tokens, num_tokens, bias=False)
        self.gate = nn.Linear(dim, num_tokens)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        learned = self.learner(tokens, tokens, mask)
        learned = learned + self.attention(self.norm(learned))
        return self.gate(tokens).sigmoid() @ (self.mixer.weight @ learned)
