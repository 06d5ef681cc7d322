"""Class attention: one learned class token attends to itself and to every position, and what it learns goes to all of them."""

import torch
from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.layers.base import TokenLayer, check_heads
from layerzoo.ops.attention import attend


class ClassAttention(TokenLayer):
    """Class attention with a class token of its own.

    **Paper**: Going Deeper with Image Transformers (CaiT), arXiv 2103.17239.

    y_i = W_o concat_h(sum_j softmax_j(q_h k_hj / sqrt(d)) v_hj), the same for all i: q = W_q c, k = W_k z, v = W_v z, z = [c, x_1 ... x_N],
    with c the class token, a parameter.

    There is one query, so keys and values are never made: softmax_j((W_kh^T q_h) z_j) pools z for each head, and W_vh maps what is pooled.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same.

    **Cost**: time N C h + h C^2; memory N C.

    **Args**:
        dim: channels C.
        num_heads: h; None = one head per 32 channels; the paper's heads have 48.
        qkv_bias: bias in q and v; on, as in the paper's models. That of k is cancelled by the softmax and not made.

    **Raises**: ValueError for num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> y = lz.create_layer("class_attention", dim=64)(torch.randn(2, 9, 64))
        >>> y.shape, torch.equal(y[:, 0], y[:, 8])
        (torch.Size([2, 9, 64]), True)

    **Differs from the paper**: the class token is a parameter of the layer, of variance 1 as the paper's norm would leave it, and starts
    anew in each layer; what is added to it there is given to every position here, for the block to add.
    """

    card = Card(
        title="Class attention (CaiT)", paper="2103.17239", year=2021, cost=(1, 1), symmetry="permutation",
        sizes={"tiny": {"dim": 8, "num_heads": 2}, "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 15, "num_heads": 3, "qkv_bias": False}},
        differs="the class token is a parameter of the layer; what is added to it there is given to every position here; k has no bias")

    def __init__(self, dim: int, *, num_heads: int | None = None, qkv_bias: bool = True):
        super().__init__(dim)
        self.num_heads = check_heads(dim, num_heads)
        self.class_token = nn.Parameter(torch.randn(dim))
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.k = nn.Linear(dim, dim, bias=False)
        self.v = nn.Linear(dim, dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        batch, length, dim = tokens.shape
        seen = torch.cat([self.class_token.to(tokens.dtype).expand(batch, 1, dim), tokens], 1)
        if mask is not None:
            mask = torch.cat([mask.new_ones(batch, 1), mask], 1)
        heads = ask(self.q(self.class_token).expand(batch, dim), seen, self.k, self.v, self.num_heads, mask)
        return self.proj(heads).unsqueeze(1).repeat(1, length, 1)


def ask(query: Tensor, seen: Tensor, k: nn.Linear, v: nn.Linear, num_heads: int, mask: Tensor | None = None) -> Tensor:
    """(B, C): what one query of each sample (B, C) gets from tokens (B, N, C) by attention with maps k, whose bias is cancelled, and v."""
    q = (query.unflatten(1, (num_heads, 1, -1)) @ k.weight.unflatten(0, (num_heads, -1))).squeeze(2) * num_heads**0.5  # SDPA divides by sqrt(C)
    seen = seen.unsqueeze(1)
    pooled = attend(q.to(seen.dtype).unsqueeze(1), seen, seen, mask).squeeze(1)  # (B, h, C): heads are queries here
    heads = torch.einsum("bhc,hdc->bhd", pooled, v.weight.unflatten(0, (num_heads, -1))).flatten(1)
    return heads if v.bias is None else heads + v.bias.to(heads.dtype)
