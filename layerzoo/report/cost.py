"""What a module costs: parameters, true FLOPs, peak activation bytes, without running it."""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Cost:
    """Cost of one forward pass.

    Fields:
        params: number of parameters.
        flops: floating-point operations, a multiply and an add counting two; elementwise operations and reductions are not counted.
        activation_bytes: most bytes of activations alive at once when a gradient will be wanted, beside input and parameters.
    """

    params: int
    flops: int
    activation_bytes: int

    def __str__(self) -> str:
        return f"{self.params / 1e6:.3f} M parameters, {self.flops / 1e6:.2f} MFLOP, {self.activation_bytes / 2**20:.2f} MiB of activations"


def cost(module: nn.Module, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Cost:
    """The cost of `module` on an input of `shape`, in eval mode with gradients.

    FLOPs are counted on the meta device, where attention and recurrent kernels are not opaque; bytes on fake tensors of the
    module's own device, so that fused kernels count as such. Nothing is computed and the module is left as it was.

    Args:
        module: any module of one input.
        shape: of the input, such as (1, 3, 32, 32).
        dtype: of the input.
    """
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    device = next((t.device for t in tensors.values()), torch.device("cpu"))
    training = [m for m in module.modules() if m.training]
    module.eval()
    try:
        with FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter, torch.device("meta"):
            meta = {k: torch.empty_like(v, device="meta") for k, v in tensors.items()}
            torch.func.functional_call(module, meta, (torch.empty(shape, dtype=dtype),))
        with FakeTensorMode() as fake:
            copies = {k: fake.from_tensor(v) if v.device.type != "meta" else torch.empty(v.shape, dtype=v.dtype, device="cpu", requires_grad=v.requires_grad) for k, v in tensors.items()}
            x = torch.empty(shape, dtype=dtype, device=device if device.type != "meta" else "cpu", requires_grad=dtype.is_floating_point)
            with LiveBytes() as live:
                torch.func.functional_call(module, copies, (x,))
    finally:
        for m in training:
            m.training = True
    params = sum(p.numel() for p in module.parameters())
    return Cost(params, counter.get_total_flops(), live.peak)


class LiveBytes(TorchDispatchMode):
    """Follows the storages that operations make until they are freed."""

    def __enter__(self):
        self.now = self.peak = 0
        self.seen: set[int] = set()
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in known | self.seen:
                storage = tensor.untyped_storage()
                self.seen.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def _free(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


def _fft_flops(shape, dims, *rest, out_shape=None, real: bool = False) -> int:
    """5 n log2 n for a complex transform of n points, half for a real one."""
    points = math.prod(shape[d] for d in dims)
    return int((2.5 if real else 5) * math.prod(shape) * math.log2(max(points, 2)))


def _pool_flops(shape, kernel_size, *rest, out_shape=None, **options) -> int:
    """One operation for each pixel of each window."""
    pooled = out_shape[0] if isinstance(out_shape[0], (tuple, list, torch.Size)) else out_shape
    return math.prod(pooled) * math.prod(kernel_size if len(kernel_size) == 2 else kernel_size * 2)


_FORMULAS = {
    torch.ops.aten._fft_c2c: _fft_flops,
    torch.ops.aten._fft_r2c: lambda *a, out_shape=None: _fft_flops(*a, real=True),
    torch.ops.aten._fft_c2r: lambda shape, dims, *rest, out_shape=None: _fft_flops(out_shape, dims, real=True),
    torch.ops.aten.avg_pool2d: _pool_flops,
    torch.ops.aten.max_pool2d_with_indices: _pool_flops,
}
