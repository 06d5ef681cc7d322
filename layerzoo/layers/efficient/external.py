"""External attention: positions attend to a small learned memory instead of to each other."""

import torch
from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import TokenLayer, check_heads
from layerzoo.ops.linear_recurrence import full_precision, no_autocast


class ExternalAttention(TokenLayer):
    """Attention to S learned keys and values that all samples and heads share, normalised twice.

    **Paper**: Beyond Self-attention: External Attention using Two Linear Layers for Visual Tasks, arXiv 2105.02358.

    y_i = W_o concat_h(sum_s a_is v_s / sum_s a_is), a_is = exp(q_i k_s) / sum_j exp(q_j k_s), j over the positions, q linear in x.

    The second sum runs over the memory. Both are one softmax over the memory of q_i k_s - log sum_j exp(q_j k_s), which cannot underflow.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same.

    **Cost**: time N C S + N C^2; memory N C + N h S; 2 S d parameters beside the projections.

    **Args**:
        dim: channels C.
        num_heads: h; 1, as the paper's external attention; its multi-head form has more, which share the memory.
        num_memories: S, pairs of a key and a value; 64, the paper's.
        qkv_bias: bias in q; on, as in the paper's code.

    **Raises**: ValueError for num_memories below 1 and num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("external", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: the code adds 1e-9 to the second sum; the batch norm, residual and ReLU around it are the model's.
    """

    card = Card(
        title="External attention", paper="2105.02358", year=2021, cost=(1, 1), symmetry="permutation",
        sizes={"tiny": {"dim": 8, "num_memories": 4}, "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 15, "num_heads": 3, "num_memories": 5, "qkv_bias": False}},
        differs="no 1e-9 in the second normaliser, which is taken as a softmax; batch norm, residual and ReLU are the model's")

    def __init__(self, dim: int, *, num_heads: int = 1, num_memories: int = 64, qkv_bias: bool = True):
        super().__init__(dim)
        self.num_heads = check_heads(dim, num_heads)
        if num_memories < 1:
            raise bad_value("num_memories", got=num_memories, expected="a whole number of keys and values >= 1", do="The paper's is 64.")
        self.query = nn.Linear(dim, dim, bias=qkv_bias)
        shape = num_memories, dim // self.num_heads
        self.memory_keys, self.memory_values = (nn.Parameter(torch.randn(shape) * (2 / num_memories) ** 0.5) for _ in range(2))  # std of the paper's code
        self.proj = nn.Linear(dim, dim)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        q, keys, values = full_precision(self.query(tokens), self.memory_keys, self.memory_values)
        with no_autocast(tokens.device):
            scores = q.unflatten(-1, (self.num_heads, -1)) @ keys.T  # (B, N, h, S)
            seen = scores if mask is None else scores.masked_fill(~mask[:, :, None, None], torch.finfo(scores.dtype).min)
            weights = (seen - seen.logsumexp(1, keepdim=True)).softmax(-1)
            y = (weights @ values).flatten(2)
        return self.proj(y.to(tokens.dtype))
