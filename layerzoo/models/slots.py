"""What stands where an attention module stood: a layer under the calling convention of timm, torchvision or transformers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.errors import Refusal, bad_value
from layerzoo.layers.attention.mhsa import MHSA
from layerzoo.layers.base import HeadsLayer, Layer, TokenLayer, as_map, map_to_tokens
from layerzoo.ops.attention import attend


class TokenSlot(nn.Module):
    """A layer of tokens (B, P + N, C): P prefix tokens (class, distillation, registers), then N places. Called as timm's Attention.

    A layer that needs no grid, or whose tables were built for P + N places, runs over the whole sequence. Another one runs over the
    map of N places, where prefix tokens have no place: those attend to the whole sequence exactly, and the places do not see them.

    Args:
        layer: of `layerzoo.create_layer`.
        num_prefix: P.
        grid: (H, W) of the map; None where it is not known, for layers that need none.
        num_heads: of the prefix tokens' attention, where the layer has no query, key and value projections of its own to share.
        qkv_bias: likewise.
    Raises:
        ValueError: for a layer that needs a grid where none is known; in `forward` for masks and for another number of places.
    """

    def __init__(
        self, layer: Layer, num_prefix: int, grid: tuple[int, int] | None, *, num_heads: int | None = None, qkv_bias: bool = True,
    ):
        super().__init__()
        self.layer, self.num_prefix, self.grid = layer, num_prefix, grid
        self.needs_grid = getattr(layer, "needs_grid", True)  # layers of maps do
        if self.needs_grid and grid is None:
            do = "Build the model for one image size, or choose a layer of layerzoo.list_layers(needs_grid=False)."
            expected = "(H, W), which this layer needs"
            raise bad_value(f"map of {type(layer).__name__}", got="a model without a size", expected=expected, do=do)
        self.num_apart = num_prefix if self.needs_grid and not self._spans_sequence() else 0
        shares = isinstance(layer, HeadsLayer) and (layer.qkv.out_features, layer.proj.in_features) == (3 * layer.dim, layer.dim)
        self.prefix = MHSA(layer.dim, num_heads=num_heads, qkv_bias=qkv_bias) if self.num_apart and not shares else None

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        if attn_mask is not None or is_causal:
            raise _refuse_mask(self.layer)
        return self.mix(x)

    def mix(self, x: Tensor) -> Tensor:
        """Tokens (B, P + N, C) to the same shape."""
        first, places = x[:, : self.num_apart], x[:, self.num_apart:]
        if not self.needs_grid:
            return self.layer(places)
        grid = self.layer.grid if self._spans_sequence() else self.grid
        if places.shape[1] != grid[0] * grid[1]:
            expected = f"{grid[0] * grid[1]} of the map {grid[0]} x {grid[1]} that the model was built for"
            do = "Keep the image size and drop no patches, or swap again after a change of size."
            raise bad_value(f"places of {type(self.layer).__name__}", got=places.shape[1], expected=expected, do=do)
        if isinstance(self.layer, TokenLayer):
            y = self.layer(places, grid=grid)
        else:
            y = map_to_tokens(self.layer(as_map(places, grid)))
        return torch.cat([self._attend_all(first, x), y], 1) if self.num_apart else y

    def _spans_sequence(self) -> bool:
        """Whether the layer's tables were built for prefix tokens and places together."""
        own = getattr(self.layer, "grid", None)
        return own is not None and own[0] * own[1] == self.num_prefix + self.grid[0] * self.grid[1]

    def _attend_all(self, first: Tensor, x: Tensor) -> Tensor:
        """Exact attention from the tokens `first` to all tokens x."""
        heads = self.layer if self.prefix is None else self.prefix
        (weight, bias), dim = (heads.qkv.weight, heads.qkv.bias), heads.dim
        q = F.linear(first, weight[:dim], None if bias is None else bias[:dim])
        k, v = F.linear(x, weight[dim:], None if bias is None else bias[dim:]).chunk(2, -1)
        return heads.merge(attend(*(t.unflatten(-1, (heads.num_heads, -1)).transpose(1, 2) for t in (q, k, v))))


class WindowSlot(TokenSlot):
    """A layer in a Swin block of timm, which becomes one window of the size of its map."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is not None:
            raise _refuse_mask(self.layer)
        return self.mix(x)

    def set_window_size(self, window_size: tuple[int, int]) -> None:
        """Called by the block, which is to be one window: refuses another size than that of the map."""
        if tuple(window_size) != self.grid:
            what, do = f"window of {type(self.layer).__name__}", "Set the sizes of the model first, then swap."
            raise bad_value(what, got=tuple(window_size), expected=f"the whole map {self.grid}", do=do)


class MultiheadSlot(TokenSlot):
    """A layer called as torch's MultiheadAttention: self-attention alone, batch first, without weights to return."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None, need_weights: bool = True,
        attn_mask: Tensor | None = None, average_attn_weights: bool = True, is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        if attn_mask is not None or key_padding_mask is not None or is_causal:
            raise _refuse_mask(self.layer)
        if need_weights:
            raise _refuse_weights(self.layer, "need_weights")
        if query is not key or query is not value:
            what, do = f"input of {type(self.layer).__name__}", "Pass (x, x, x, need_weights=False)."
            raise bad_value(what, got="other keys or values than queries", expected="self-attention", do=do)
        return self.mix(query), None


class TransformersSlot(TokenSlot):
    """A layer called as the attention of transformers, without weights to return."""

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> tuple[Tensor, None]:  # hidden states are what the blocks return, and taken there
        if attention_mask is not None:
            raise _refuse_mask(self.layer)
        if output_attentions:
            raise _refuse_weights(self.layer, "output_attentions")
        return self.mix(hidden_states), None


def _refuse_mask(layer: Layer) -> Refusal:
    expected, do = "none: a swapped layer sees the whole image", "Mask nothing, or leave this module as it is."
    return bad_value(f"mask of {type(layer).__name__}", got="a mask of the model", expected=expected, do=do)


def _refuse_weights(layer: Layer, option: str) -> Refusal:
    expected, do = "False: a layer returns no attention weights", "Leave it out; layerzoo.effective_matrix shows what a layer sees."
    return bad_value(f"{option} of {type(layer).__name__}", got=True, expected=expected, do=do)
