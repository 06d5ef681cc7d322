"""Induced set attention: a few learned points gather from all positions, and every position asks the points."""

import torch
from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import HeadsLayer
from layerzoo.ops.attention import attend


class SetAttention(HeadsLayer):
    """Attention through m learned inducing points, the mixing part of ISAB.

    **Paper**: Set Transformer, arXiv 1810.00825.

    y = W_o concat_h(softmax(q_h K_h^T / sqrt(d)) V_h), [K V] = W H + b, H = G + relu(W_f G + b_f),
    G = I + concat_h(softmax(I_h k_h^T / sqrt(d)) v_h), with q, k, v linear in x, and I (m, C) learned.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same.

    **Cost**: time N C m + N C^2 + m C^2; memory N C + m C.

    **Args**:
        dim: channels C.
        num_heads: h; None = one head per 32 channels.
        num_landmarks: m, inducing points; 32, the paper's code.
        qkv_bias: bias in queries, keys and values; on, as in the paper's code.

    **Raises**: ValueError for num_landmarks below 1 and num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("set_attention", dim=64, num_landmarks=16)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: of the second attention block only the attention is here, as residual, norm and feed-forward of the
    positions are the model's; the first block keeps its residual and its feed-forward, since nothing else would give them to the points.
    There is no layer norm (off in the paper's code too), I is learned as queries and not projected to them, and scores are divided by
    sqrt(d) of a head (the paper's code: sqrt(C)).
    """

    card = Card(
        title="Induced set attention", paper="1810.00825", year=2018, survey="M", cost=(1, 1), symmetry="permutation",
        sizes={"tiny": {"dim": 8, "num_heads": 2, "num_landmarks": 3}, "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 15, "num_heads": 3, "num_landmarks": 5, "qkv_bias": False}},
        differs="residual, norm and feed-forward of the positions are the model's; no norm on the points, which are learned as queries; scores over sqrt(d)")

    def __init__(self, dim: int, *, num_heads: int | None = None, num_landmarks: int = 32, qkv_bias: bool = True):
        super().__init__(dim, num_heads, qkv_bias)
        if num_landmarks < 1:
            raise bad_value("num_landmarks", got=num_landmarks, expected="a whole number of inducing points >= 1", do="The paper's code has 32.")
        self.points = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_landmarks, dim)))
        self.point_ffn = nn.Linear(dim, dim)
        self.point_kv = nn.Linear(dim, 2 * dim, bias=qkv_bias)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        q, k, v = self.split(tokens)
        points = self.points.expand(len(tokens), -1, -1)
        gathered = attend(self._heads(points.to(k.dtype)), k, v, mask)
        points = points + gathered.transpose(1, 2).flatten(2)
        points = points + self.point_ffn(points).relu()
        keys, values = self.point_kv(points).chunk(2, dim=-1)
        return self.merge(attend(q, self._heads(keys), self._heads(values)))

    def _heads(self, points: Tensor) -> Tensor:
        """(B, m, C) -> (B, h, m, d)."""
        return points.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
