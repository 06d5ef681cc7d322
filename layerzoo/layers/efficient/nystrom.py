"""Nystrom attention: softmax attention rebuilt from its values at a few landmarks."""

import torch
from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import HeadsLayer
from layerzoo.ops.attention import attend
from layerzoo.ops.linear_recurrence import full_precision, no_autocast
from layerzoo.ops.sequence import real_first


class Nystrom(HeadsLayer):
    """Nystrom approximation of softmax attention.

    **Paper**: Nystromformer, arXiv 2102.03902.

    y = softmax(Q K~^T / sqrt(d)) A^+ softmax(Q~ K^T / sqrt(d)) V + DWConv(V), A = softmax(Q~ K~^T / sqrt(d)), with landmarks Q~, K~ the
    means of m segments of the sequence and A^+ by Z <- Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4 from Z = A^T / (|A|_1 |A|_inf).

    **Shape**: (B, C, H, W) or (B, N, C) -> the same; a map is read row by row.

    **Cost**: time N C m + N C^2 + h m^3; memory N C + h m^2.

    **Args**:
        dim: channels C.
        num_heads: h; None = one head per 32 channels.
        num_landmarks: m, at most the number of real tokens; 64, the paper's.
        num_iterations: of the pseudo-inverse; 6, the paper's.
        conv_kernel: tokens seen by the depthwise convolution on V, odd, one kernel per head; 33, the paper's code; 0 = none.
        qkv_bias: bias in q, k, v; on, as in ViT.

    **Raises**: ValueError for num_landmarks or num_iterations below 1, a conv_kernel that is neither odd nor 0, and
    num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("nystrom", dim=64, num_landmarks=16)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: segments may differ by one token in length, so N need not be a multiple of m; the start of the
    pseudo-inverse is scaled for each sample and head (the paper's code takes one scale for the batch).
    """

    card = Card(
        title="Nystrom attention", paper="2102.03902", year=2021, survey="M+DS", cost=(1, 1),
        sizes={"tiny": {"dim": 8, "num_heads": 2, "num_landmarks": 4, "conv_kernel": 3}, "base": {"dim": 64, "num_heads": 4, "num_landmarks": 32},
               "odd": {"dim": 15, "num_heads": 3, "num_landmarks": 5, "conv_kernel": 5}},
        limit={"equals": "mhsa", "options": {"num_landmarks": 24, "conv_kernel": 0, "num_iterations": 40}, "grid": (4, 6), "tol": 1e-6},
        differs="segments may differ by one token in length; the pseudo-inverse starts scaled for each sample and head, not for the batch")

    def __init__(
        self, dim: int, *, num_heads: int | None = None, num_landmarks: int = 64, num_iterations: int = 6, conv_kernel: int = 33,
        qkv_bias: bool = True,
    ):
        super().__init__(dim, num_heads, qkv_bias)
        for what, given in (("num_landmarks", num_landmarks), ("num_iterations", num_iterations)):
            if given < 1:
                raise bad_value(what, got=given, expected="a whole number >= 1", do="The paper's are 64 landmarks and 6 iterations.")
        if conv_kernel and (conv_kernel < 0 or conv_kernel % 2 == 0):
            raise bad_value("conv_kernel", got=conv_kernel, expected="an odd number of tokens, or 0 for none", do="Choose one such as 33.")
        self.num_landmarks, self.num_iterations = num_landmarks, num_iterations
        self.conv = None
        if conv_kernel:
            self.conv = nn.Conv2d(self.num_heads, self.num_heads, (conv_kernel, 1), padding=(conv_kernel // 2, 0), groups=self.num_heads, bias=False)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        return real_first(lambda packed, real: self.merge(self.mix_heads(packed, real)), tokens, mask)

    def mix_heads(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Heads (B, h, N, d) of tokens (B, N, C) whose real ones come first."""
        q, k, v = self.split(tokens)
        if mask is not None:
            v = v * mask[:, None, :, None]
        segments = segment_means(mask, min(self.num_landmarks, q.shape[2]), tokens)
        q_mean, k_mean, _ = self.split(segments @ tokens)  # the projection of a mean is the mean of projections
        used = None if mask is None else segments.sum(-1) > 0
        summary = attend(q_mean, k, v, mask)
        with no_autocast(tokens.device):
            inverse = pseudo_inverse(landmark_kernel(*full_precision(q_mean, k_mean), used), self.num_iterations)
            summary = (inverse @ summary.to(inverse.dtype)).to(v.dtype)
        y = attend(q, k_mean, summary, used)
        return y if self.conv is None else y + self.conv(v)


def segment_means(mask: Tensor | None, count: int, like: Tensor) -> Tensor:
    """(B or 1, count, N): row s averages the real tokens of segment s, of min(count, real tokens) segments as equal as can be."""
    real = torch.ones(1, like.shape[1], dtype=torch.bool, device=like.device) if mask is None else mask
    total = real.sum(1, keepdim=True)
    segment = (real.cumsum(1) - 1) * total.clamp(max=count) // total.clamp(min=1)
    member = (segment.unsqueeze(1) == torch.arange(count, device=like.device)[:, None]) & real.unsqueeze(1)
    return (member / member.sum(-1, keepdim=True).clamp(min=1)).to(like.dtype)


def landmark_kernel(q: Tensor, k: Tensor, used: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(d)) (B, h, m, m); rows and columns of unused landmarks are zero."""
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    if used is None:
        return scores.softmax(-1)
    columns, rows = used[:, None, None, :], used[:, None, :, None]
    return scores.masked_fill(~columns, torch.finfo(scores.dtype).min).softmax(-1) * (rows & columns)


def pseudo_inverse(a: Tensor, num_iterations: int) -> Tensor:
    """The paper's third-order iteration towards the pseudo-inverse of each (m, m) matrix."""
    sums = a.sum(-2).amax(-1) * a.sum(-1).amax(-1)
    z = a.transpose(-2, -1) / sums.clamp(min=1e-12)[..., None, None]
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    for _ in range(num_iterations):
        az = a @ z
        z = z @ (13 * identity - az @ (15 * identity - az @ (7 * identity - az))) / 4
    return z
