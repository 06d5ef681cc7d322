"""What a trainer holds, as plain JSON and tensors by name, and back again: tuples, keys that are not text and layouts included."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from layerzoo.errors import bad_value

_TAG = "~"  # a JSON object whose first key begins so stands for something else


def flatten(value: object, where: str, tensors: dict[str, Tensor]) -> object:
    """The value with each tensor put into `tensors` under a name, and all else as JSON can hold it.

    Args:
        value: dicts, lists, tuples, tensors, text, numbers, None.
        where: names the value in messages, and its tensors.
        tensors: takes them, on the CPU and dense.
    Raises:
        ValueError: for anything else, by its place and type.
    """
    if isinstance(value, Tensor) and value.layout is torch.strided:
        return _flatten_tensor(value.detach(), where, tensors)
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith(_TAG) for key in value):
            return {key: flatten(v, f"{where}.{key}", tensors) for key, v in value.items()}
        return {"~dict": [[flatten(k, f"{where} key", tensors), flatten(v, f"{where}.{k}", tensors)] for k, v in value.items()]}
    if type(value) in (list, tuple):
        parts = [flatten(v, f"{where}.{i}", tensors) for i, v in enumerate(value)]
        return parts if type(value) is list else {"~tuple": parts}
    if type(value) is float and not math.isfinite(value):
        return {"~float": str(value)}
    if value is None or type(value) in (str, int, float, bool):
        return value
    layout = f" with layout {value.layout}" if isinstance(value, Tensor) else ""
    raise bad_value(
        f"training checkpoint: {where}", got=f"{type(value).__module__}.{type(value).__qualname__}{layout}",
        expected="tensors, text, numbers, and dicts, lists and tuples of these", do="Nothing was saved. Keep such a value out of state_dict().")


def unflatten(value: object, tensors: dict[str, Tensor]) -> object:
    """What `flatten` was given. Raises KeyError, TypeError or ValueError for what it never wrote."""
    if isinstance(value, list):
        return [unflatten(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    kind = next(iter(value), "")
    if not kind.startswith(_TAG):
        return {key: unflatten(v, tensors) for key, v in value.items()}
    if kind == "~dict":
        return {unflatten(k, tensors): unflatten(v, tensors) for k, v in value[kind]}
    if kind == "~tuple":
        return tuple(unflatten(v, tensors) for v in value[kind])
    if kind == "~float":
        return float(value[kind])
    if kind == "~tensor":
        stored = tensors[value[kind]]
        return stored.permute(value["order"]) if "order" in value else stored
    raise KeyError(kind)


def _flatten_tensor(value: Tensor, where: str, tensors: dict[str, Tensor]) -> dict:
    """Stored with its axes from widest to narrowest step: sums over another layout would round otherwise after a resume."""
    name = where if where not in tensors else f"{where}{_TAG}{len(tensors)}"
    steps = sorted(range(value.ndim), key=lambda axis: -value.stride(axis))
    tensors[name] = value.cpu().permute(steps).contiguous()
    if steps == list(range(value.ndim)):
        return {"~tensor": name}
    return {"~tensor": name, "order": [steps.index(axis) for axis in range(value.ndim)]}
