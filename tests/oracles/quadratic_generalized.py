"""The generalised quadratic encoding, as the isotropic one with a matrix in place of a number."""

from oracles.quadratic_attention import twin

__all__ = ["twin"]
