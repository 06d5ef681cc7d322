"""ST-MoE without its draws: both of a token's experts are used, as in GLaM; they are gated."""

from oracles.glam import twin

__all__ = ["twin"]
