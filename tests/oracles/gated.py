"""The twin of the gate on that of the layer."""

import importlib

from layerzoo.layers.base import TokenLayer


def inner(part, x):
    """The twin of a layer of maps or of tokens, on a map."""
    oracle = importlib.import_module(f"oracles.{type(part).__module__.split('.')[-1]}")
    if not isinstance(part, TokenLayer):
        return oracle.twin(part, x)
    tokens = oracle.twin(part, x.flatten(2).transpose(1, 2), tuple(x.shape[2:]))
    return tokens.transpose(1, 2).reshape(x.shape)


def twin(layer, x):
    return inner(layer.gate, inner(layer.layer, x))
