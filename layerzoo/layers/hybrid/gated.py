"""A layer and a gate behind it: what one layer of the zoo mixes, another one scales."""

from torch import Tensor

from layerzoo.card import Card
from layerzoo.layers.base import Layer
from layerzoo.registry import LAYERS


class Gated(Layer):
    """Any layer followed by any gate.

    **Paper**: Squeeze-and-Excitation Networks, arXiv 1709.01507, where the gate is `se`, on what the convolutions of a block add to it.

    y = gate(layer(x)).

    **Shape**: (B, C, H, W) -> the same.

    **Cost**: that of the layer and that of the gate.

    **Args**:
        dim: channels C.
        layer: name, {"name": ..., option: ...} or class; depthwise_conv, as convolutions are what gates were made for.
        gate: the same, of the family gate or any other; se, the paper's.
        num_heads: heads, for a layer or a gate that takes the option and is not given it.
        grid: (H, W) of the map, in the same way.

    **Raises**: ValueError for unknown names and options, and what the layer and the gate refuse.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> layer = lz.create_layer("gated", dim=64, layer="mhsa", gate={"name": "cbam", "kernel_size": 3}, num_heads=2)
        >>> layer(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: one layer in place of the two or three convolutions of a residual block.
    """

    card = Card(
        title="Gated layer", paper="1709.01507", year=2017, cost=(1, 1), mask=False, needs_grid=True,
        sizes={"tiny": {"dim": 8}, "base": {"dim": 64, "layer": "mhsa", "gate": "cbam", "num_heads": 4},
               "odd": {"dim": 15, "layer": {"name": "coatnet_attention", "num_heads": 5}, "gate": {"name": "eca", "kernel_size": 5},
                       "num_heads": 3, "grid": (5, 3)}},
        differs="one layer in place of the two or three convolutions of a residual block",
        cannot={"mask": "it is a layer of maps, and a map has no places to leave out"})

    def __init__(
        self, dim: int, *, layer: str | dict | type = "depthwise_conv", gate: str | dict | type = "se", num_heads: int | None = None,
        grid: tuple[int, int] | None = None,
    ):
        super().__init__(dim)
        defaults = {k: v for k, v in {"num_heads": num_heads, "grid": grid}.items() if v is not None}
        self.layer = LAYERS.create(layer, dim, defaults=defaults)
        self.gate = LAYERS.create(gate, dim, defaults=defaults)

    def mix(self, x: Tensor) -> Tensor:
        return self.gate(self.layer(x))
