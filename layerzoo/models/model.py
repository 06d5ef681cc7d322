"""What every model is: stem, position, stages, norm and head, under timm's method names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from layerzoo.errors import bad_value
from layerzoo.layers.base import check_choice
from layerzoo.models.head import Head
from layerzoo.models.stem import create_stem
from layerzoo.ops.norms import create_norm
from layerzoo.registry import POSITIONS


class Model(nn.Module):
    """Images (B, in_chans, H, W) to logits (B, num_classes), any H and W >= 1. Subclasses fill `stages`.

    Args:
        config: the arguments that rebuild this model, plain values, with "model" naming the class.
        dim: channels of the first map.
        num_features: channels of the last stage's map.
        head: options of Head, and "norm": that of the last map; and "num_features", to which a 1x1 convolution before this norm, and SiLU
            after it, widen the last map.
    """

    where_positions_go = ("stem",)

    def __init__(self, config: dict, dim: int, num_features: int, head: dict):
        super().__init__()
        self.config = config
        self.in_chans, *size = config["input_size"]
        norm, self.last_width, self.num_features = head.get("norm", "layer"), num_features, head.get("num_features", num_features)
        self.img_size, self.num_classes = tuple(size), config["num_classes"]
        self.stem = create_stem(config["stem"], self.in_chans, dim)
        grid = tuple(-(-side // self.stem.stride) for side in size)
        self.stem_width = getattr(self.stem, "width", dim)
        absolute, self.stage_position, self.inner_position = split_position(config["position"], self.where_positions_go)
        self.position = POSITIONS.create(absolute, self.stem_width, defaults={"grid": grid})
        self.stages = nn.ModuleList()
        self.norm = create_norm(norm, self.num_features)
        if "num_features" in head:
            self.norm = nn.Sequential(nn.Conv2d(num_features, self.num_features, 1, bias=False), self.norm, nn.SiLU())
        self.head = Head(self.num_features, self.num_classes, **{k: v for k, v in head.items() if k not in ("norm", "num_features")})
        self.grid = grid

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map, normalised: (B, num_features, H', W')."""
        x = self._start(x)
        for stage in self.stages:
            x = stage(x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, num_classes) of the last map, or its pooled features (B, num_features)."""
        return self.head(x, pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self, x: Tensor, indices: int | list[int] | None = None, norm: bool = False, stop_early: bool = False, output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Maps after chosen stages (blocks of an isotropic model), for dense tasks.

        Args:
            x: images (B, in_chans, H, W).
            indices: which stages, negatives from the end; a number = the last so many; None = all.
            norm: normalise the maps that have the channels of the last stage by the last norm, which may widen them.
            stop_early: do not run stages beyond the last wanted one.
            output_fmt: "NCHW", or "NLC" for tokens.
            intermediates_only: leave out the last map.
        Returns:
            (last map, list of maps), or the list alone.
        Raises:
            ValueError: for a stage that is not there or another output_fmt.
        """
        wanted = self._stage_indices(indices)
        if output_fmt not in ("NCHW", "NLC"):
            raise bad_value("output_fmt", got=repr(output_fmt), expected="NCHW or NLC", do="Choose one of these.")
        size = x.shape[2:]
        maps, x = [], self._start(x)
        for i, stage in enumerate(self.stages[: max(wanted, default=-1) + 1] if stop_early else self.stages):
            x = stage(x)
            if i in wanted:
                y = self.as_map(self.norm(x) if norm and x.shape[1] == self.last_width else x, size)
                maps.append(y if output_fmt == "NCHW" else y.flatten(2).transpose(1, 2))
        return maps if intermediates_only else (self.norm(x), maps)

    def as_map(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """What a stage gives, as the map (B, C, H', W') of an image of `size`."""
        return x

    def reset_classifier(self, num_classes: int) -> None:
        """A new head for `num_classes`; 0 = pooled features."""
        self.num_classes = num_classes
        self.config = self.config | {"num_classes": num_classes}
        self.head.reset(num_classes)

    def init_from_data(self, images: Tensor) -> None:
        """Let a stem that learns from statistics see normalised training images (B, in_chans, H, W)."""
        if hasattr(self.stem, "init_from_data"):
            self.stem.init_from_data(images)

    def _start(self, x: Tensor) -> Tensor:
        self._check_images(x)
        return self.position(self.stem(x))

    def _check_images(self, x: Tensor) -> None:
        what, shape = f"input of {type(self).__name__}", f"images (B, {self.in_chans}, H, W)"
        if not isinstance(x, Tensor):
            raise bad_value(what, got=type(x).__name__, expected=f"a tensor of {shape}", do="Convert it by torch.as_tensor.")
        if x.ndim != 4 or x.shape[1] != self.in_chans or 0 in x.shape[2:]:
            raise bad_value(what, got=tuple(x.shape), expected=shape, do="Check the number of channels and the layout.")
        dtype = next((p.dtype for p in self.parameters()), x.dtype)
        if x.dtype != dtype and not (x.is_floating_point() and torch.is_autocast_enabled(x.device.type)):
            do = "Convert images by .to(), and integers to normalised values before; or the model."
            raise bad_value(what, got=f"images of {x.dtype}", expected=f"of {dtype}, as its weights", do=do)

    def _stage_indices(self, indices: int | list[int] | None) -> set[int]:
        count = len(self.stages)
        listed = range(count) if indices is None else range(count - indices, count) if isinstance(indices, int) else indices
        for i in listed:
            if not -count <= i < count:
                raise bad_value("indices", got=i, expected=f"stages from {-count} to {count - 1}", do="Ask for stages that exist.")
        return {i % count for i in listed}


def split_position(spec: str | dict, places: tuple[str, ...]) -> tuple[str | dict, str | dict, str | None]:
    """An encoding added after the stem, one added in every stage, and one that attention layers apply themselves (rotary, bias)."""
    spec = dict(spec) if isinstance(spec, dict) else {"name": spec}
    after = spec.pop("after", "stem")
    check_choice("after, of a position", after, places)
    if POSITIONS.find(spec.get("name")).kind != "absolute":
        return "none", "none", spec["name"]
    return (spec, "none", None) if after == "stem" else ("none", spec, None)


def drop_path_rates(drop_path: float, depth: int) -> list[float]:
    """Rates rising linearly from 0 to `drop_path` over the depth."""
    return torch.linspace(0, drop_path, depth, device="cpu").tolist()
