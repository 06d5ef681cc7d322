"""Deformable convolution, version 3: groups of channels are averaged over points, with weights that a softmax makes from the input."""

from torch import Tensor, nn
from torch.nn import functional as F

from layerzoo.card import Card
from layerzoo.layers.base import Layer, check_odd, map_to_tokens, tokens_to_map
from layerzoo.ops.groups import check_groups
from layerzoo.ops.sampling import kernel_points, sample


class DeformableConvGrouped(Layer):
    """Deformable convolution of InternImage.

    **Paper**: InternImage, arXiv 2211.05778.

    y[p] = W_o concat_g(sum_k m_gk[p] v_g(p + p_k + d_gk[p])) + b_o over the K = k x k places p_k of a kernel: v = W_v x + b_v is
    bilinear, and zero outside the map; offsets d = D c and weights m = softmax_k(M c) are linear in c = gelu(norm(depthwise * x)).

    **Shape**: (B, C, H, W) -> the same.

    **Cost**: time N C^2 + N C k^2 (1 + G); memory N C k^2.

    **Args**:
        dim: channels C.
        kernel_size: k, in positions, odd, of the points and of the depthwise convolution; 3, the paper's.
        num_groups: G, groups of channels with offsets and weights of their own; None = one per 16 channels, the paper's.

    **Raises**: ValueError for a kernel_size that is not odd, and num_groups that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("deformable_conv_v3", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: stride 1; no scale on the offsets, which only its larger models have, and D can learn.
    """

    card = Card(
        title="Deformable convolution v3 (InternImage)", paper="2211.05778", year=2022, cost=(1, 1), mask=False, needs_grid=True,
        symmetry="translation",
        sizes={"tiny": {"dim": 8, "num_groups": 2}, "base": {"dim": 64}, "odd": {"dim": 15, "kernel_size": 5, "num_groups": 3}},
        limit={"equals": "identity", "options": {"kernel_size": 1}, "grid": (4, 6),
               "set": {"offset.weight": "zeros", "offset.bias": "zeros", "value.weight": "identity", "value.bias": "zeros",
                       "proj.weight": "identity", "proj.bias": "zeros"}},
        differs="stride 1; no scale on the offsets",
        cannot={"mask": "it is a layer of maps, and a map has no places to leave out"})

    def __init__(self, dim: int, *, kernel_size: int = 3, num_groups: int | None = None):
        super().__init__(dim)
        check_odd("kernel_size", kernel_size)
        self.num_groups, self.places = check_groups(dim, num_groups), kernel_size**2
        self.depthwise = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.offset = nn.Linear(dim, self.num_groups * self.places * 2)
        self.modulation = nn.Linear(dim, self.num_groups * self.places)
        self.value = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)
        for p in (*self.offset.parameters(), *self.modulation.parameters()):
            nn.init.zeros_(p)

    def mix(self, x: Tensor) -> Tensor:
        context = F.gelu(self.norm(map_to_tokens(self.depthwise(x))))
        offset = self.offset(context).mT.unflatten(1, (self.num_groups, self.places, 2)).unflatten(-1, x.shape[2:]).movedim(3, -1)
        weights = self.modulation(context).mT.unflatten(1, (self.num_groups, self.places)).softmax(2).unflatten(-1, x.shape[2:])
        points = kernel_points(offset).flatten(0, 1)  # (B G, K, H, W, 2)
        v = self.value(map_to_tokens(x)).mT.unflatten(1, (self.num_groups, -1)).flatten(0, 1).unflatten(-1, x.shape[2:])
        y = sum(w * sample(v, p) for w, p in zip(weights.flatten(0, 1).unsqueeze(2).unbind(1), points.unbind(1)))
        return tokens_to_map(self.proj(y.unflatten(0, (-1, self.num_groups)).flatten(3).flatten(1, 2).mT), x)
