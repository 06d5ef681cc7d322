"""Focused linear attention of FLatten: a power sharpens the features, a depthwise convolution restores the rank."""

from torch import Tensor, nn

from layerzoo.card import Card
from layerzoo.errors import bad_value
from layerzoo.layers.base import HeadsLayer, as_map, check_odd, map_to_tokens
from layerzoo.ops.linear_recurrence import full_precision, linear_attention, no_autocast


class Flatten(HeadsLayer):
    """Focused linear attention.

    **Paper**: FLatten Transformer, arXiv 2308.00442.

    y = W_o concat_h(phi(Q) (phi(K)^T V) / (phi(Q) phi(K)^T 1 + eps) + conv(V)), phi(x) = |r| / |r^p| r^p with r = relu(x) + eps and
    the power by channel: it turns x towards its largest channels and keeps its length. conv is depthwise over the map.

    **Shape**: (B, C, H, W) or (B, N, C) -> the same.

    **Cost**: time N C (d + K^2) and N C^2; memory N C.

    **Args**:
        dim: channels C.
        num_heads: h; None = one head per 32 channels.
        power: p; 3, the paper's.
        kernel_size: K of the depthwise convolution in positions; 5, the paper's.
        qkv_bias: bias in q, k, v; on, as in the paper's code.
        eps: added to features and normaliser; 1e-6, the paper's code.

    **Raises**: ValueError for a power below 1, an even kernel_size and num_heads that do not divide dim.

    **Example**:
        >>> import torch, layerzoo as lz
        >>> lz.create_layer("flatten", dim=64)(torch.randn(2, 64, 7, 5)).shape
        torch.Size([2, 64, 7, 5])

    **Differs from the paper**: without the learned scale and the position table of its code, which is for one map size; every
    channel has a kernel of its own, where the code shares those of one head among all.
    """

    card = Card(
        title="Focused linear attention", paper="2308.00442", year=2023, cost=(1, 1), needs_grid=True, symmetry="translation",
        sizes={"tiny": {"dim": 8, "num_heads": 2, "kernel_size": 3}, "base": {"dim": 64, "num_heads": 4},
               "odd": {"dim": 15, "num_heads": 3, "kernel_size": 3, "power": 2.0, "qkv_bias": False}},
        differs="without the learned scale and position table of its code; every channel has a kernel of its own")

    def __init__(
        self, dim: int, *, num_heads: int | None = None, power: float = 3.0, kernel_size: int = 5, qkv_bias: bool = True, eps: float = 1e-6,
    ):
        super().__init__(dim, num_heads, qkv_bias)
        if power < 1:
            raise bad_value("power", got=power, expected="a number >= 1", do="The paper's is 3; 1 leaves ReLU features as they are.")
        check_odd("kernel_size", kernel_size)
        self.power, self.eps = power, eps
        self.conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)

    def mix(self, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        q, k, v = self.split(tokens)
        if mask is not None:
            v = v * mask[:, None, :, None]
        local = map_to_tokens(self.conv(as_map(v.transpose(1, 2).flatten(2), grid)))
        q, k, v = full_precision(q, k, v)
        with no_autocast(tokens.device):
            q, k = (focused(t, self.power, self.eps) for t in (q, k))
            k = k if mask is None else k * mask[:, None, :, None]
            y = linear_attention(q, k, v, self.eps)
        return self.proj(y.to(tokens.dtype).transpose(1, 2).flatten(2) + local)


def focused(x: Tensor, power: float, eps: float) -> Tensor:
    """The direction of relu(x)^power at the length of relu(x)."""
    x = x.relu() + eps
    largest = x.amax(-1, keepdim=True)  # divided out, so that no power leaves the range of the dtype
    sharp = (x / largest).pow(power)
    return sharp * (x.norm(dim=-1, keepdim=True) / sharp.norm(dim=-1, keepdim=True))
