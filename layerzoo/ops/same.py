"""Padding as TensorFlow has it, for weights that were trained with it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class SamePad(nn.Module):
    """Zeros around a map (B, C, H, W) such that a convolution that pads nothing gives ceil(side / stride) places a side; the odd one comes last.

    Args:
        kernel_size: of the convolution, in places.
        stride: of the convolution.
    """

    def __init__(self, kernel_size: int, stride: int):
        super().__init__()
        self.kernel_size, self.stride = kernel_size, stride

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        for side in x.shape[:1:-1]:
            missing = max(0, self.kernel_size - self.stride if side % self.stride == 0 else self.kernel_size - side % self.stride)
            pads += [missing // 2, missing - missing // 2]
        return F.pad(x, pads)
