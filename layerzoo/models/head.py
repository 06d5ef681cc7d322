"""Head: map to logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from layerzoo.ffn.mlp import MLP
from layerzoo.layers.attention.class_attention import ask
from layerzoo.layers.base import check_choice, check_heads, map_to_tokens
from layerzoo.ops.norms import create_norm


class Head(nn.Module):
    """Pool the map over positions, then one linear layer, or with hidden_dim an MLP: linear, activation, linear.

    Args:
        dim: channels C of the map (B, C, H, W).
        num_classes: logits; 0 = return the pooled features (B, C).
        pool: "mean", "max", "sequence" (attention pooling, CCT, arXiv 2104.05704), "first" (the class token of a model with a prefix), or
            "class" (a class token that comes in here, CaiT, arXiv 2103.17239).
        scale: factor on the logits.
        dropout: on the pooled features, and in the MLP on its hidden ones instead.
        pooled_norm: norm of the pooled features; what Block takes.
        hidden_dim: channels between the layers of the MLP.
        hidden_act: "gelu" and LayerNorm, as in InceptionNeXt (arXiv 2303.16900), or "tanh", as in MaxViT (arXiv 2204.01697).
        class_pool: options of ClassPool.
    """

    def __init__(self, dim: int, num_classes: int, *, pool: str = "mean", scale: float = 1.0, dropout: float = 0.0,
                 pooled_norm: str | dict = "none", hidden_dim: int | None = None, hidden_act: str = "gelu", class_pool: dict | None = None):
        super().__init__()
        check_choice("hidden_act", hidden_act, ("gelu", "tanh"))
        check_choice("pool", pool, ("mean", "max", "sequence", "first", "class"))
        self.dim, self.pool, self.scale = hidden_dim or dim, pool, scale
        self.score = nn.Conv2d(dim, 1, 1) if pool == "sequence" else None
        self.class_pool = ClassPool(dim, **(class_pool or {})) if pool == "class" else None
        self.pooled_norm = create_norm(pooled_norm, dim)
        self.hidden = nn.Identity()
        if hidden_dim:
            act = [nn.GELU(), nn.LayerNorm(hidden_dim, eps=1e-6)] if hidden_act == "gelu" else [nn.Tanh()]
            self.hidden = nn.Sequential(nn.Linear(dim, hidden_dim), *act)
        self.dropout = nn.Dropout(dropout)
        self.reset(num_classes)

    def reset(self, num_classes: int) -> None:
        """A new linear layer for `num_classes`."""
        self.fc = nn.Linear(self.dim, num_classes) if num_classes else nn.Identity()
        if num_classes:
            nn.init.trunc_normal_(self.fc.weight, std=0.02)
            nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        if self.pool == "mean":
            y = x.mean((2, 3))
        elif self.pool == "max":
            y = x.amax((2, 3))
        elif self.pool == "first":
            y = x[:, :, 0, 0]
        elif self.pool == "class":
            y = self.class_pool(x)
        else:
            y = torch.einsum("bn,bcn->bc", self.score(x).flatten(1).softmax(1), x.flatten(2))
        y = self.pooled_norm(y[..., None, None]).flatten(1)
        return y if pre_logits else self.fc(self.dropout(self.hidden(y))) * self.scale


class ClassPool(nn.Module):
    """A learned token to which each block adds what it sees in a map, by class attention, and then an MLP of itself; both after LayerNorm.

    Args:
        dim: channels C of the map (B, C, H, W); the token (B, C) is what is returned.
        kind: "cait", or "xcit" for blocks as the code of XCiT (arXiv 2106.09681) has them; see XCiTClassBlock.
        depth: blocks; 2, the paper's.
        num_heads: of the attention; None = one head per 32 channels.
        mlp_ratio: hidden channels of the MLP over C.
        layer_scale: initial scale of what is added.
    Raises:
        ValueError: for another kind, num_heads that do not divide dim, and an mlp_ratio that leaves no hidden channel.
    """

    def __init__(self, dim: int, *, kind: str = "cait", depth: int = 2, num_heads: int | None = None, mlp_ratio: float = 4.0, layer_scale: float = 1e-5):
        super().__init__()
        kinds = {"cait": ClassBlock, "xcit": XCiTClassBlock}
        check_choice("kind", kind, tuple(kinds))
        self.token = nn.Parameter(nn.init.trunc_normal_(torch.empty(dim), std=0.02))
        self.blocks = nn.ModuleList(kinds[kind](dim, check_heads(dim, num_heads), mlp_ratio, layer_scale) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        places, token = map_to_tokens(x), self.token.to(x.dtype).expand(len(x), -1)
        for block in self.blocks:
            token, places = block(token, places)
        return token


class ClassBlock(nn.Module):
    """One block of ClassPool: a token (B, C) that sees itself and places (B, N, C)."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, layer_scale: float):
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim, bias=False)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)
        self.ffn_norm = nn.LayerNorm(dim, eps=1e-6)
        self.ffn = MLP(dim, mlp_ratio=mlp_ratio)
        self.scale, self.ffn_scale = (nn.Parameter(torch.full((dim,), float(layer_scale))) for _ in range(2))

    def forward(self, token: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        token, _ = self.attend(token, places)
        return token + self.added(self.ffn_norm(token)), places

    def attend(self, token: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """The token with what it sees, and the places normalised."""
        seen = self.norm(torch.cat([token.unsqueeze(1), places], 1))
        return token + self.scale * self.proj(ask(self.q(seen[:, 0]), seen, self.k, self.v, self.num_heads)), seen[:, 1:]

    def added(self, normed: Tensor) -> Tensor:
        """What the MLP adds to a token (B, C)."""
        return self.ffn_scale * self.ffn(normed.unsqueeze(1)).squeeze(1)


class XCiTClassBlock(ClassBlock):
    """One block of XCiT's code, where the normalised token is what the MLP adds to, and places change: 2 (x + scale norm(x))."""

    def forward(self, token: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        token, normed_places = self.attend(token, places)
        token = self.ffn_norm(token)
        return token + self.added(token), 2 * (places + self.scale * normed_places)
