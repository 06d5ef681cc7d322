"""Few tokens learned from many positions: TokenLearner's maps, for the downsample and for the layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.ops.token_maps import check_count


class LearnedTokens(nn.Module):
    """k tokens, each a mean of all positions: z = softmax_N(W_2 gelu(W_1 x + b_1))^T v.

    W_2 has no bias, which the softmax over positions would cancel.

    Args:
        dim: channels C of x.
        num_tokens: k.
        hidden_dim: hidden channels of the scores.
    Raises:
        ValueError: for num_tokens or hidden_dim below 1.
    """

    def __init__(self, dim: int, num_tokens: int, hidden_dim: int):
        super().__init__()
        check_count("num_tokens", num_tokens, "TokenLearner's is 8.")
        check_count("hidden_dim", hidden_dim, "TokenLearner's is 64.")
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, num_tokens, bias=False)

    def forward(self, x: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens (B, k, D) of x (B, N, C) and values (B, N, D); mask (B, N) bool, True = real position."""
        scores = self.fc2(F.gelu(self.fc1(x)))
        if mask is not None:
            scores = scores.masked_fill(~mask.unsqueeze(-1), torch.finfo(scores.dtype).min)
        return scores.softmax(1).transpose(1, 2) @ values
