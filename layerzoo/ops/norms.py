"""Norms of maps, by name."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.errors import bad_value


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of a map (B, C, H, W); a view away from the token form if x is channels_last."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


def create_norm(spec: str | dict, dim: int) -> nn.Module:
    """A norm of maps: "layer" (over channels), "group" (one group: over the whole sample), "batch" or "none"; or {"name": ..., "eps": ...}.

    Raises:
        ValueError: for another name and for options other than eps.
    """
    name, eps = (spec, 1e-5) if isinstance(spec, str) else (spec.get("name"), spec.get("eps", 1e-5))
    makers = {"layer": LayerNorm2d, "group": lambda d, eps: nn.GroupNorm(1, d, eps), "batch": nn.BatchNorm2d, "none": lambda d, eps: nn.Identity()}
    if name not in makers:
        raise bad_value("norm", got=repr(name), expected=f"one of {', '.join(makers)}", do="Choose one of these.")
    if isinstance(spec, dict) and not spec.keys() <= {"name", "eps"}:
        raise bad_value("options of a norm", got=", ".join(spec), expected="name and eps alone", do="Leave the others out.")
    return makers[name](dim, eps=eps)
