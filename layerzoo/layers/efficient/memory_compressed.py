"""Memory-compressed attention: a strided convolution shortens keys and values before all queries attend to them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import HeadsLayer
from layerzoo.ops.attention import attend
from layerzoo.ops.sequence import real_first


class MemoryCompressed(HeadsLayer):
    """Softmax attention to keys and values of blocks of s positions.

    **Paper**: Generating Wikipedia by Summarizing Long Sequences, arXiv 1801.10198.

    y = W_o concat_h(softmax(q_h K_h^T / sqrt(d)) V_h), K_b = sum_t A_t k_{s b + t}, V_b = sum_t B_t v_{s b + t}, t = 0 ... s - 1, with
    A_t and B_t (d, d) learned for each head. A last block that is not full is filled with zeros.

    With causal, query i sees a learned null key and value and the blocks that end at i or before, none of which holds a zero.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same; a map is read row by row.

    **Cost**: time N^2 C / s + N C^2; memory N C, causal too: the queries of one phase i mod s see block after block, as in a triangle.

    **Args**:
        dim: channels C.
        stride: s, positions of a block, kernel and stride of the convolutions; 3, the paper's.
        num_heads: h, also the groups of the convolutions; None = one head per 32 channels.
        qkv_bias: bias in q, k, v; on, as in ViT. The convolutions have none.
        causal: position i sees complete blocks up to i, in row-major order.
        dropout: probability of dropping an attention weight; 0, as in ViT.

    **Raises**: ValueError for a stride below 1 and num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("memory_compressed", dim=64, stride=4)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: this is its compressed layer alone; the model there alternates it with attention inside blocks. What
    the paper leaves open: the convolutions act within heads, and a last block that is not full is kept, unless causal.
    """

    card = Card(
        title="Memory-compressed attention", paper="1801.10198", year=2018, survey="FP+M", cost=(2, 1), causal=True,
        sizes={"tiny": {"dim": 8, "num_heads": 2, "stride": 3}, "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 15, "num_heads": 3, "stride": 4, "qkv_bias": False}},
        limit={"equals": "mhsa", "options": {"num_heads": 64, "stride": 1}, "equals_options": {"num_heads": 64}, "grid": (4, 6),
               "set": {"key_conv.weight": "ones", "value_conv.weight": "ones"}},  # of one channel, so ones are the identity
        differs="the compressed layer alone, without the paper's local layers between; convolutions within heads; a last block that is not full is kept")

    def __init__(
        self, dim: int, *, stride: int = 3, num_heads: int | None = None, qkv_bias: bool = True, causal: bool = False, dropout: float = 0.0,
    ):
        super().__init__(dim, num_heads, qkv_bias)
        if stride < 1:
            raise bad_value("stride", got=stride, expected="a whole number of positions >= 1", do="The paper's is 3.")
        self.stride, self.causal, self.dropout = stride, causal, dropout
        self.key_conv, self.value_conv = (nn.Conv1d(dim, dim, stride, stride=stride, groups=self.num_heads, bias=False) for _ in range(2))
        if causal:  # else no query is without a block
            self.null_key, self.null_value = (nn.Parameter(torch.zeros(self.num_heads, 1, self.head_dim)) for _ in range(2))

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        form = self.mix_causal if self.causal else self.mix_all
        return real_first(lambda packed, real: self.merge(form(packed, real)), tokens, mask)

    def mix_all(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Heads (B, h, N, d) of tokens (B, N, C) whose real ones come first."""
        q, k, v = self.split(tokens)
        if mask is not None:
            k, v = k * mask[:, None, :, None], v * mask[:, None, :, None]
        started = None if mask is None else mask[:, :: self.stride]
        k, v = self._compress(self.key_conv, k), self._compress(self.value_conv, v)
        return attend(q, k, v, started, dropout=self.dropout if self.training else 0.0)

    def mix_causal(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """The same; a block with a masked token ends after all real queries, so no mask is needed."""
        q, k, v = self.split(tokens)
        length, complete = q.shape[2], q.shape[2] // self.stride
        k = self._after_null(self.null_key, self._compress(self.key_conv, k)[:, :, :complete])
        v = self._after_null(self.null_value, self._compress(self.value_conv, v)[:, :, :complete])
        # query i sees the null and (i + 1) // s blocks: with one query before, row p of each phase sees keys 0 to p, the causal triangle
        q = F.pad(q, (0, 0, 1, -(length + 1) % self.stride)).unflatten(2, (-1, self.stride)).transpose(2, 3)
        k, v = (t.unsqueeze(2).expand(-1, -1, self.stride, -1, -1).flatten(1, 2) for t in (k, v))
        y = attend(q.flatten(1, 2), k, v, causal=True, dropout=self.dropout if self.training else 0.0)
        return y.unflatten(1, (-1, self.stride)).transpose(2, 3).flatten(2, 3)[:, :, 1: length + 1]

    def _compress(self, conv: nn.Conv1d, x: Tensor) -> Tensor:
        """(B, h, N, d) -> (B, h, blocks, d), the last block filled with zeros."""
        x = F.pad(x.transpose(2, 3).flatten(1, 2), (0, -x.shape[2] % self.stride))
        return conv(x).unflatten(1, (self.num_heads, self.head_dim)).transpose(2, 3).contiguous()  # or the attention is not fused

    def _after_null(self, null: Tensor, x: Tensor) -> Tensor:
        return torch.cat([null.to(x.dtype).expand(len(x), -1, -1, -1), x], dim=2)
