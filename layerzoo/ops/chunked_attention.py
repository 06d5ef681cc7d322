"""Exact softmax attention in chunks of queries and keys: no N x N weights, neither forward nor backward."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def chunked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, query_chunk: int, key_chunk: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) v with at most query_chunk x key_chunk weights of each head at once.

    What is kept for the gradient is q, k, v, the result and one number per query, from which each chunk's weights are made again.

    Args:
        q, k, v: (B, h, N, d).
        mask: (B, N) bool, True = real key.
        causal: query i sees keys up to i.
        query_chunk, key_chunk: rows of a chunk.
    """
    hidden = None if mask is None else ~mask.repeat_interleave(q.shape[1], 0).unsqueeze(1)
    folded = (t.flatten(0, 1) for t in (q * q.shape[-1] ** -0.5, k, v))
    return _ChunkedAttention.apply(*folded, hidden, causal, query_chunk, key_chunk).unflatten(0, q.shape[:2])


class _ChunkedAttention(torch.autograd.Function):
    """Of scaled queries, keys and values (B h, N, d); `hidden` is (B h, 1, N) or None."""

    @staticmethod
    def forward(ctx, q, k, v, hidden, causal, query_chunk, key_chunk):
        ctx.options = causal, query_chunk, key_chunk
        y, log_total = torch.empty_like(q), torch.empty_like(q[..., :1])
        v = F.pad(v, (0, 1), value=1.0)  # the sum of weights is one more channel
        for rows, parts in _chunks(q.shape[1], *ctx.options):
            top = torch.full_like(log_total[:, rows], torch.finfo(q.dtype).min)
            sums = torch.zeros_like(v[:, rows])
            for columns in parts:
                top, sums = _add(top, sums, _scores(q, k, hidden, causal, rows, columns), v[:, columns])
            y[:, rows] = sums[..., :-1] / sums[..., -1:]
            log_total[:, rows] = top + sums[..., -1:].log()
        ctx.save_for_backward(q, k, v, hidden, y, log_total)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        q, k, v, hidden, y, log_total = ctx.saved_tensors
        grad = torch.cat([grad, -(grad * y).sum(-1, keepdim=True)], -1)  # times (v, 1): the gradient of a weight, less their mean
        grad_q, grad_k, grad_v = (torch.zeros_like(t) for t in (q, k, v))
        for rows, parts in _chunks(q.shape[1], *ctx.options):
            for columns in parts:
                weights = _scores(q, k, hidden, ctx.options[0], rows, columns).sub_(log_total[:, rows]).exp_()
                grad_v[:, columns].baddbmm_(weights.mT, grad[:, rows])
                weights.mul_(grad[:, rows] @ v[:, columns].mT)
                grad_q[:, rows].baddbmm_(weights, k[:, columns])
                grad_k[:, columns].baddbmm_(weights.mT, q[:, rows])
        return grad_q, grad_k, grad_v[..., :-1], None, None, None, None


def _chunks(length: int, causal: bool, query_chunk: int, key_chunk: int) -> Iterator[tuple[slice, list[slice]]]:
    """Each chunk of queries with the chunks of keys that it sees."""
    for start in range(0, length, query_chunk):
        stop = min(start + query_chunk, length)
        last = stop if causal else length
        yield slice(start, stop), [slice(a, min(a + key_chunk, last)) for a in range(0, last, key_chunk)]


def _scores(q: Tensor, k: Tensor, hidden: Tensor | None, causal: bool, rows: slice, columns: slice) -> Tensor:
    """Scores of one chunk; at keys that are not seen the least number, which vanishes beside any that is."""
    scores, least = torch.bmm(q[:, rows], k[:, columns].mT), torch.finfo(q.dtype).min
    if hidden is not None:
        scores.masked_fill_(hidden[..., columns], least)
    if causal and columns.stop - 1 > rows.start:
        place = torch.arange(rows.stop, device=q.device)
        scores.masked_fill_(place[columns] > place[rows][:, None], least)
    return scores


def _add(top: Tensor, sums: Tensor, scores: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The largest score so far, and the sum of exp(score - largest) times (value, 1), after one more chunk of keys."""
    highest = torch.maximum(top, scores.amax(-1, keepdim=True))
    return highest, torch.baddbmm(sums * (top - highest).exp_(), scores.sub_(highest).exp_(), v)
