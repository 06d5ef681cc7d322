"""All-attention: every query sees all positions and, in the same softmax, learned keys and values that no input changes."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import HeadsLayer
from layerzoo.ops.attention import attend
from layerzoo.ops.sequence import real_first


class PersistentMemory(HeadsLayer):
    """Self-attention with M persistent keys and values for each head.

    **Paper**: Augmenting Self-attention with Persistent Memory, arXiv 1907.01470.

    y = W_o concat_h(softmax(q_h [sqrt(d) P_h; k_h]^T / sqrt(d)) [sqrt(M) U_h; v_h]), P and U (h, M, d) learned; with causal, query i
    sees all M persistent keys and the keys of positions up to i.

    P starts with variance 1/d and U with 1/M, so what is attended starts with variance 1.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same.

    **Cost**: time N (N + M) C + N C^2, causal (N + M)^2 C; memory (N + M) C; 2 M C parameters beside the projections.

    **Args**:
        dim: channels C.
        num_memories: M for each head; 1024, the paper's code, where they take the place of the feed-forward; 0 = none.
        num_heads: h; None = one head per 32 channels.
        qkv_bias: bias in q, k, v; on, as in ViT.
        causal: position i sees positions up to i, in row-major order.
        dropout: probability of dropping an attention weight; 0, as in ViT.

    **Raises**: ValueError for num_memories below 0 and num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("persistent_memory", dim=64, num_memories=16)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: no relative positions and no adaptive span; the feed-forward, which the paper drops, is the model's choice.
    """

    card = Card(
        title="All-attention", paper="1907.01470", year=2019, survey="M", cost=(2, 1), causal=True, symmetry="permutation",
        sizes={"tiny": {"dim": 8, "num_heads": 2, "num_memories": 3}, "base": {"dim": 64, "num_heads": 4, "num_memories": 64},
               "odd": {"dim": 15, "num_heads": 3, "num_memories": 5, "qkv_bias": False}},
        limit={"equals": "mhsa", "options": {"num_memories": 0}, "grid": (4, 6)},
        differs="no relative positions and no adaptive span; the feed-forward, which the paper drops, is the model's choice")

    def __init__(
        self, dim: int, *, num_memories: int = 1024, num_heads: int | None = None, qkv_bias: bool = True, causal: bool = False, dropout: float = 0.0,
    ):
        super().__init__(dim, num_heads, qkv_bias)
        if num_memories < 0:
            raise bad_value("num_memories", got=num_memories, expected="a whole number >= 0 of persistent vectors", do="The paper's code has 1024.")
        self.num_memories, self.causal, self.dropout = num_memories, causal, dropout
        shape = self.num_heads, num_memories, self.head_dim
        self.memory_keys = nn.Parameter(torch.randn(shape) * self.head_dim**-0.5)
        self.memory_values = nn.Parameter(torch.randn(shape) * max(num_memories, 1) ** -0.5)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        if self.causal:  # with the real tokens first, no real query sees a masked key
            return real_first(lambda packed, real: self.merge(self.mix_heads(packed, None)), tokens, mask)
        return self.merge(self.mix_heads(tokens, mask))

    def mix_heads(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Heads (B, h, N, d) of tokens (B, N, C)."""
        q, k, v = self.split(tokens)
        k = _after(self.memory_keys * self.head_dim**0.5, k)
        v = _after(self.memory_values * self.num_memories**0.5, v)
        mask = None if mask is None else F.pad(mask, (self.num_memories, 0), value=True)
        # M queries for nothing make the causal triangle that of SDPA, so that no N x N mask is made
        q = F.pad(q, (0, 0, self.num_memories, 0)) if self.causal else q
        y = attend(q, k, v, mask, causal=self.causal, dropout=self.dropout if self.training else 0.0)
        return y[:, :, self.num_memories:] if self.causal else y


def _after(memory: Tensor, x: Tensor) -> Tensor:
    """x (B, h, N, d) after the persistent vectors (h, M, d)."""
    return torch.cat([memory.to(x.dtype).expand(len(x), -1, -1, -1), x], dim=2)
