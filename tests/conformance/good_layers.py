"""Four small layers that keep the contract."""

import torch
from torch import nn

import layerzoo as lz

SIZES = {"tiny": {"dim": 8}, "base": {"dim": 64}, "odd": {"dim": 5}}


class Mean(lz.TokenLayer):
    """y = W x + the mean of the real tokens."""

    card = lz.Card(title="Mean", paper="", year=2026, cost=(1, 1), symmetry="permutation", sizes=SIZES)

    def __init__(self, dim: int):
        super().__init__(dim)
        self.proj = nn.Linear(dim, dim)

    def mix(self, tokens, grid, mask=None):
        real = torch.ones_like(tokens[..., :1]) if mask is None else mask.unsqueeze(-1).to(tokens.dtype)
        return self.proj(tokens) + (tokens * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)


class RunningSum(lz.TokenLayer):
    """The sum so far, or the sum of all."""

    card = lz.Card(title="Running sum", paper="", year=2026, cost=(1, 1), symmetry="permutation", causal=True, sizes=SIZES)

    def __init__(self, dim: int, *, causal: bool = False):
        super().__init__(dim)
        self.causal, self.proj = causal, nn.Linear(dim, dim)

    def mix(self, tokens, grid, mask=None):
        values = self.proj(tokens) if mask is None else self.proj(tokens) * mask.unsqueeze(-1)
        return (values.cumsum(1) if self.causal else values.sum(1, keepdim=True).expand_as(values).contiguous()) / 16

    def step(self, token, state):
        state = self.proj(token) + (0 if state is None else state)
        return state / 16, state


class Blur(lz.Layer):
    """A layer of maps."""

    card = lz.Card(
        title="Blur", paper="", year=2026, cost=(1, 1), mask=False, needs_grid=True, symmetry="translation", sizes=SIZES,
        cannot={"mask": "it is a layer of maps"})

    def __init__(self, dim: int):
        super().__init__(dim)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def mix(self, x):
        return self.conv(x)


class Place(Mean):
    """Each token sees its row alone."""

    card = lz.Card(title="Place", paper="", year=2026, cost=(1, 1), needs_grid=True, symmetry="translation", sizes=SIZES)

    def mix(self, tokens, grid, mask=None):
        rows = tokens.unflatten(1, grid)
        mask = None if mask is None else mask.unflatten(1, grid)
        real = torch.ones_like(rows[..., :1]) if mask is None else mask.unsqueeze(-1).to(tokens.dtype)
        mean = (rows * real).sum(2, keepdim=True) / real.sum(2, keepdim=True).clamp(min=1)
        return (self.proj(rows) + mean).flatten(1, 2)
