"""Compressive attention: what leaves the memory of Transformer-XL is not dropped but compressed."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import check_choice
from layerzoo.layers.efficient.transformer_xl import TransformerXL, fold, last
from layerzoo.ops.attention import attend
from layerzoo.ops.auxiliary import add_loss, collecting
from layerzoo.ops.segments import windows


class Compressive(TransformerXL):
    """Segment-level recurrence with a memory and a compressed memory.

    **Paper**: Compressive Transformers for Long-Range Sequence Modelling, arXiv 1911.05507.

    Transformer-XL in which a segment sees [compressed memory; memory; segment], distances counted in this row: every c tokens that leave
    the memory become one vector f(x_1, ..., x_c), and the last such vectors are kept. f gets no gradient from y: it is trained by the
    auxiliary loss "compression" alone, mean |A(q, old) - A(q, f(old))|^2, where A is softmax attention without positions, q the queries
    of a segment and old the tokens that leave the memory after it, all without gradient.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same; a map is read row by row.

    **Cost**: of Transformer-XL with a memory of memory_length + compressed_length, and N C^2 for f; the loss costs about as much again.

    **Args**:
        dim: channels C.
        num_heads: h; None = one head per 32 channels.
        segment_length: n, in tokens; 64, so that 14 x 14 tokens make four segments (the paper has 512 and more of text).
        memory_length: in tokens; 64, as in the paper as many as in a segment.
        compressed_length: vectors of the compressed memory; 64, as many as in the memory: they stand for 256 tokens.
        compression_rate: c; 4, the paper's for words (3 for characters).
        compression: f: "conv" (kernel and stride c), "mean" or "max"; conv, the paper's best. The others have no loss: nothing to train.
        causal: position i sees positions up to i, in row-major order; without it a whole segment, and still the past alone beside it.

    **Raises**: ValueError as Transformer-XL, for a compressed_length or compression_rate below 1, an unknown compression, and a length
    of segment or memory that is no multiple of compression_rate.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("compressive", dim=64, segment_length=8, memory_length=8)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: as Transformer-XL; memories begin empty, not as zeros; compressed vectors stand at distances of 1, which
    the paper leaves open; the loss is a mean, there a norm; no dilated and no most-used f.
    """

    card = Card(
        title="Compressive attention", paper="1911.05507", year=2019, survey="RC", cost=(1, 1), causal=True,
        sizes={"tiny": {"dim": 8, "num_heads": 2, "segment_length": 8, "memory_length": 4, "compressed_length": 3},
               "base": {"dim": 64, "num_heads": 4, "segment_length": 16, "memory_length": 8},
               "odd": {"dim": 15, "num_heads": 3, "segment_length": 4, "memory_length": 6, "compression_rate": 2,
                       "compression": "max"}},
        limit={"equals": "transformer_xl", "options": {"segment_length": 4}, "equals_options": {"segment_length": 4}, "grid": (4, 6)},
        differs="as Transformer-XL; memories begin empty; vectors stand at distances of 1; a mean as loss; no dilated or most-used f")

    def __init__(
        self, dim: int, *, num_heads: int | None = None, segment_length: int = 64, memory_length: int = 64,
        compressed_length: int = 64, compression_rate: int = 4, compression: str = "conv", causal: bool = False,
    ):
        super().__init__(dim, num_heads=num_heads, segment_length=segment_length, memory_length=memory_length, causal=causal)
        check_choice("compression", compression, ("conv", "mean", "max"))
        for what, given in (("compressed_length", compressed_length), ("compression_rate", compression_rate)):
            if given < 1:
                raise bad_value(what, got=given, expected="a whole number >= 1", do="Choose 64 vectors, each of 4 tokens.")
        for what, given in (("segment_length", segment_length), ("memory_length", memory_length)):
            if given % compression_rate:
                raise bad_value(what, got=given, expected=f"a multiple of {compression_rate} tokens", do="Whole blocks leave the memory.")
        self.compressed_length, self.compression_rate, self.compression = compressed_length, compression_rate, compression
        self.conv = nn.Conv1d(dim, dim, compression_rate, stride=compression_rate) if compression == "conv" else None

    def past(self, tokens: Tensor, real: Tensor, size: int) -> tuple[Tensor, Tensor]:
        memory, present = super().past(tokens, real, size)
        rate, shift = self.compression_rate, min(self.memory_length, tokens.shape[1])
        if self.conv is not None and collecting():
            old, left = (windows(t, size, shift, -shift).flatten(0, 1) for t in (tokens, real[..., None]))
            self.add_reconstruction_loss(fold(tokens, size), fold(real, size), old, left.squeeze(2))
        reach = min(self.compressed_length, max(0, tokens.shape[1] - size - shift) // rate)
        if reach == 0:
            return memory, present
        step, gap, pair = size // rate, shift // rate, (self.compress(tokens).detach(), real[:, ::rate, None])
        blocks, full = (windows(t, step, reach + gap, -step - gap).flatten(0, 1) for t in pair)
        return torch.cat([blocks, memory], 1), torch.cat([full.squeeze(2), present], 1)

    def extend(self, tokens: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """One segment (B, n, C) after the memory and compressed memory in `state`; None before the first. Equals the parallel form."""
        memory, blocks = (tokens[:, :0].detach(),) * 2 if state is None else state
        y = self.merge(self.mix_heads(tokens, torch.cat([blocks, memory], 1)))
        memory = torch.cat([memory, tokens], 1).detach()
        gone = max(0, memory.shape[1] - self.memory_length) // self.compression_rate * self.compression_rate
        if not gone:
            return y, (memory, blocks)
        old, memory = memory[:, :gone], memory[:, gone:]
        if self.conv is not None and collecting():
            real, left = (torch.ones_like(t[..., 0], dtype=torch.bool) for t in (tokens, old))
            self.add_reconstruction_loss(tokens.detach(), real, old, left)
        return y, (memory, last(torch.cat([blocks, self.compress(old).detach()], 1), self.compressed_length))

    def compress(self, tokens: Tensor) -> Tensor:
        """(B, N, C) -> (B, N / c, C); a last block that is not full is filled with zeros."""
        blocks = F.pad(tokens, (0, 0, 0, -tokens.shape[1] % self.compression_rate))
        if self.conv is not None:
            return self.conv(blocks.mT).mT
        blocks = blocks.unflatten(1, (-1, self.compression_rate))
        return blocks.mean(2) if self.compression == "mean" else blocks.amax(2)

    def add_reconstruction_loss(self, tokens: Tensor, real: Tensor, old: Tensor, left: Tensor) -> None:
        """Report the loss of segments (b, n, C) and of the tokens (b, m, C) that leave the memory after them; bools: which are there."""
        rate, (to_q, to_kv) = self.compression_rate, self.qkv.weight.detach().split((self.dim, 2 * self.dim))
        (q,), (k, v) = self.project(tokens, to_q), self.project(old, to_kv)
        short_k, short_v = self.project(self.compress(old), to_kv)
        left = left & (torch.arange(old.shape[1], device=old.device) < real.sum(1, keepdim=True) // rate * rate)  # as many as came
        counted, left = real & left.any(1, keepdim=True), left | ~left.any(1, keepdim=True)
        gap = attend(q, k, v, left) - attend(q, short_k, short_v, left[:, ::rate])
        add_loss("compression", (gap.square().mean((1, 3)) * counted).sum() / counted.sum().clamp(min=1), 1.0)
