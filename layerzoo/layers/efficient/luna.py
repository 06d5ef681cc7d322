"""Luna: a few vectors pack all positions by attention, and every position unpacks them by another."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import TokenLayer, check_heads
from layerzoo.ops.attention import attend
from layerzoo.ops.linear_recurrence import causal_sums, full_precision, no_autocast


class Luna(TokenLayer):
    """Linear unified nested attention.

    **Paper**: Luna, arXiv 2106.01540.

    y = W_o A(W_q x, W_c Y), Y = A(W_p P, W_x x), with A(q, c) = concat_h(softmax(q_h c_h^T / sqrt(d)) c_h) and P (l, C) learned, or
    what the layer before packed; what is passed on is LN(Y + P).

    With causal, position t unpacks the mean S_t = (1 / t) sum_{i <= t} w(W_p P (W_x x_i)^T / sqrt(d)) W_c x_i in place of W_c Y, for each
    head, w(s) = log2(1 + 2^s); `step` carries the sum from token to token.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same.

    **Cost**: time N C l + N C^2; memory N C, with causal N C + N h l.

    **Args**:
        dim: channels C.
        num_heads: h; None = one head per 32 channels.
        num_landmarks: l, vectors of P; 16, the paper's smallest for 1024 to 4096 tokens.
        qkv_bias: bias in W_q, W_p, W_x and W_c; on, as in the paper's code.
        causal: position i sees positions up to i, in row-major order.

    **Raises**: ValueError for num_landmarks below 1 and num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("luna", dim=64, num_landmarks=8)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])
        >>> x, packed = torch.randn(2, 35, 64), None
        >>> for layer in [lz.create_layer("luna", dim=64, num_landmarks=8) for _ in range(2)]:  # each takes what the one before packed
        ...     y, packed = layer.pack_and_unpack(x, packed)
        >>> packed.shape
        torch.Size([2, 8, 64])

    **Differs from the paper**: residual, norm and feed-forward of the positions are the model's. The norm of what is passed on has no
    gain and bias, since in a layer alone nothing would train them. Causal, P is passed on as it came, as in the paper's decoder.
    """

    card = Card(
        title="Luna", paper="2106.01540", year=2021, survey="M", cost=(1, 1), causal=True, symmetry="permutation",
        sizes={"tiny": {"dim": 8, "num_heads": 2, "num_landmarks": 3}, "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 15, "num_heads": 3, "num_landmarks": 5, "qkv_bias": False}},
        differs="residual, norm and feed-forward of the positions are the model's; the norm of what is passed on has no gain and bias")

    def __init__(self, dim: int, *, num_heads: int | None = None, num_landmarks: int = 16, qkv_bias: bool = True, causal: bool = False):
        super().__init__(dim)
        self.num_heads, self.causal = check_heads(dim, num_heads), causal
        self.head_dim = dim // self.num_heads
        if num_landmarks < 1:
            raise bad_value("num_landmarks", got=num_landmarks, expected="a whole number >= 1 of vectors", do="The paper has 16 to 256.")
        self.landmarks = nn.Parameter(dim**-0.5 * torch.randn(num_landmarks, dim))
        self.pack_query, self.pack_context, self.query, self.context = (nn.Linear(dim, dim, bias=qkv_bias) for _ in range(4))
        self.proj = nn.Linear(dim, dim)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        return self.pack_and_unpack(tokens, None, mask)[0]

    def pack_and_unpack(self, tokens: Tensor, packed: Tensor | None = None, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """y (B, N, C) and what a next layer takes as `packed` (B, l, C); None = the learned vectors of this one."""
        packed = self.landmarks.expand(len(tokens), -1, -1) if packed is None else packed
        if self.causal:
            return self.mix_causal(tokens, packed, mask), packed
        context = self._heads(self.pack_context(tokens))
        y = _joined(attend(self._heads(self.pack_query(packed)), context, context, mask))
        context = self._heads(self.context(y))
        return self.proj(_joined(attend(self._heads(self.query(tokens)), context, context))), F.layer_norm(y + packed, (self.dim,))

    def mix_causal(self, tokens: Tensor, packed: Tensor, mask: Tensor | None) -> Tensor:
        q, weights, context = self.features(tokens, packed)
        count = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)[:, None]
        if mask is not None:
            weights, count = weights * mask[:, None, :, None], mask.cumsum(1).clamp(min=1)[:, None, :, None]
        with no_autocast(tokens.device):
            unpacking = (causal_sums(q, context, weights) / count).softmax(-1)
            y = causal_sums(unpacking, weights, context) / count
        return self.proj(_joined(y).to(tokens.dtype))

    def step(
        self, token: Tensor, state: tuple[Tensor, int] | None = None, packed: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, int]]:
        """One token (B, C) after those in `state`; None before the first. Equals the causal form, token by token."""
        total, count = (0, 0) if state is None else state
        q, weights, context = self.features(token.unsqueeze(1), self.landmarks.expand(len(token), -1, -1) if packed is None else packed)
        with no_autocast(token.device):
            total, count = total + weights.mT @ context, count + 1
            mean = total / count
            y = (q @ mean.mT).softmax(-1) @ mean
        return self.proj(_joined(y).to(token.dtype)).squeeze(1), (total, count)

    def features(self, tokens: Tensor, packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled queries (B, h, N, d), weights of the positions in each pack (B, h, N, l), and what is packed (B, h, N, d)."""
        pairs = (self.pack_query, packed), (self.pack_context, tokens), (self.query, tokens), (self.context, tokens)
        points, keys, q, context = full_precision(*(self._heads(linear(x)) for linear, x in pairs))
        scale = self.head_dim**-0.5
        with no_autocast(tokens.device):
            return q * scale, F.softplus(keys @ (points * scale).mT, beta=math.log(2)), context

    def _heads(self, x: Tensor) -> Tensor:
        """(B, n, C) -> (B, h, n, d)."""
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)


def _joined(heads: Tensor) -> Tensor:
    """(B, h, n, d) -> (B, n, C)."""
    return heads.transpose(1, 2).flatten(2)
