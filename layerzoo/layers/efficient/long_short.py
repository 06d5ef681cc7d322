"""Long-short attention of Transformer-LS: one softmax over the tokens of a window and over compressed tokens of the whole input."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import HeadsLayer
from layerzoo.ops.sequence import real_first
from layerzoo.ops.windows import attend_blocks, blocks, windows


class LongShort(HeadsLayer):
    """Segment-wise sliding window and dynamic projection, with dual layer norm.

    **Paper**: Long-Short Transformer, arXiv 2107.02192.

    y_i = W_o concat_h(softmax([q_i LN_L(k_j), q_i LN_G(K)] / sqrt(d)) [LN_L(v_j), LN_G(V)]), K = P_h^T k_h, V = P_h^T v_h,
    P_h = softmax_N(X W_h) (N, r), j over the segment of w tokens that holds i and w // 2 tokens on both sides of it.

    With causal, P is taken inside each segment of l tokens; query i sees j <= i in its window, of w tokens on the left and none on the
    right, and the r vectors of each of the m complete segments before its own.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same; a map is read row by row.

    **Cost**: time N C (2 w + r) + N C^2; memory N C (2 + r / w). Causal: r becomes m r, so N^2 r / l only where m is N / l.

    **Args**:
        dim: channels C.
        window_size: w, in tokens; 32 (the paper: 8 on Long Range Arena, 512 on text).
        num_landmarks: r; None = 32, the paper's on Long Range Arena, and with causal 1 for each segment, the paper's on enwik8.
        segment_size: l, in tokens, which divides w; 16, the paper's on enwik8. Only for causal.
        num_segments: m; 64 (the paper: 256, all of its 4096 tokens). Only for causal.
        num_heads: h; None = one head per 32 channels.
        qkv_bias: bias in q, k, v; on, as in ViT.
        causal: position i sees positions up to i, in row-major order.

    **Raises**: ValueError for a window_size, num_landmarks or num_segments below 1, a segment_size below 1 or, with causal, that does
    not divide window_size, and num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("long_short", dim=64, window_size=8, num_landmarks=4)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: maps are windowed as sequences (there its vision model has square windows); no relative positions; causal
    queries see a bounded number of compressed segments.
    """

    card = Card(
        title="Long-short attention (Transformer-LS)", paper="2107.02192", year=2021, survey="FP+LR", cost=(1, 1), causal=True,
        sizes={"tiny": {"dim": 8, "num_heads": 2, "window_size": 4, "num_landmarks": 3, "segment_size": 2, "num_segments": 3},
               "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 15, "num_heads": 3, "window_size": 5, "num_landmarks": 2, "segment_size": 5, "num_segments": 30,
                       "qkv_bias": False}},
        differs="maps are windowed as sequences; no relative positions; causal queries see a bounded number of compressed segments")

    def __init__(
        self, dim: int, *, window_size: int = 32, num_landmarks: int | None = None, segment_size: int = 16, num_segments: int = 64,
        num_heads: int | None = None, qkv_bias: bool = True, causal: bool = False,
    ):
        super().__init__(dim, num_heads, qkv_bias)
        num_landmarks = (1 if causal else 32) if num_landmarks is None else num_landmarks
        for what, got in (("window_size", window_size), ("num_landmarks", num_landmarks), ("num_segments", num_segments)):
            if got < 1:
                raise bad_value(what, got=got, expected="a whole number, at least one", do="Leave it out for a default of the layer.")
        if segment_size < 1 or causal and window_size % segment_size:
            divisor = f"a divisor of window_size={window_size}"
            raise bad_value("segment_size", got=segment_size, expected=divisor, do="Choose half of the window.")
        self.window_size, self.num_landmarks, self.causal = window_size, num_landmarks, causal
        self.segment_size, self.num_segments = segment_size, num_segments
        self.norm_near, self.norm_far = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.projection = nn.Linear(dim, self.num_heads * num_landmarks, bias=False)  # the softmax over tokens would cancel a bias

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        return real_first(lambda packed, real: self.proj(self.mix_windows(packed, real)), tokens, mask)

    def mix_windows(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Heads joined (B, N, C) of tokens (B, N, C) whose real ones come first."""
        real = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else mask
        q, kv = self.qkv(tokens).tensor_split((self.dim,), dim=-1)
        far = self.compress(tokens, kv, real)
        near = self.norm_near(kv.unflatten(2, (2, self.dim))).flatten(2)
        size, kv, seen = (self.keys_of_past if self.causal else self.keys_of_all)(near, far, real)
        return attend_blocks(blocks(q, size), kv, self.num_heads, seen).flatten(1, 2)[:, : tokens.shape[1]]

    def compress(self, tokens: Tensor, kv: Tensor, real: Tensor) -> Tensor:
        """(B, segments, r, 2 C): P^T of keys and values (B, N, 2 C) inside each segment, normed; one segment unless causal."""
        segment = self.segment_size if self.causal else tokens.shape[1]
        scores = self.projection(tokens)
        scores = blocks(scores.masked_fill(~real.unsqueeze(-1), torch.finfo(scores.dtype).min), segment)
        weights = scores.softmax(2).unflatten(3, (self.num_heads, self.num_landmarks))
        rows = blocks(kv, segment).unflatten(3, (2, self.num_heads, self.head_dim))
        return self.norm_far(torch.einsum("bslhr,bslkhd->bsrkhd", weights, rows).flatten(4)).flatten(3)

    def keys_of_all(self, near: Tensor, far: Tensor, real: Tensor) -> tuple[int, Tensor, Tensor]:
        """Queries in a block, keys and values of each block (B, n, keys, 2 C), and which of them are seen."""
        size = min(self.window_size, near.shape[1])
        reach = min(self.window_size // 2, (near.shape[1] - 1) // size * size)
        place = size, size + 2 * reach, reach
        seen = windows(real[..., None], *place).mT
        return size, windows(near, *place, far), F.pad(seen, (0, self.num_landmarks), value=True)

    def keys_of_past(self, near: Tensor, far: Tensor, real: Tensor) -> tuple[int, Tensor, Tensor]:
        """The same; what a real query sees is real, since it is past."""
        segment, length = self.segment_size, near.shape[1]
        size = min(self.window_size, length + -length % segment)
        inside, before, past = size // segment, size if length > size else 0, min(self.num_segments, far.shape[1] - 1)
        far = windows(far.flatten(2), inside, past + inside, past).unflatten(3, (self.num_landmarks, -1)).flatten(2, 3)
        kv = windows(near, size, before + size, before, far)
        here, block = torch.arange(size, device=kv.device)[:, None], torch.arange(kv.shape[1], device=kv.device)[:, None, None]
        token, number = torch.arange(-before, size, device=kv.device), torch.arange(-past, inside, device=kv.device)
        near_seen = (token <= here) & (token + block * size >= 0)
        far_seen = (number < here // segment) & (number >= here // segment - past) & (number + block * inside >= 0)
        seen = torch.cat([near_seen, far_seen.repeat_interleave(self.num_landmarks, -1)], -1)
        return size, kv, seen.expand(len(kv), -1, -1, -1)
