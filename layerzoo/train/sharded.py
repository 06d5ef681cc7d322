"""FSDP2 under Lightning: every rank keeps a part of each weight, gradient and optimiser state."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

from layerzoo.errors import bad_value
from layerzoo.models.block import Block
from layerzoo.models.create import build_model


class Sharded(DDPStrategy):
    """Data parallelism by parts (arXiv 2304.11277): the weights of a block are gathered while it runs, and its gradients scattered.

    What is saved is whole, as without: rank 0 gathers weights, averages and optimiser states, so that a run goes on under any
    strategy and on any number of ranks. Evaluation, in which ranks may have unequal numbers of batches, gathers all weights
    once. Buffers are those of rank 0 at each step, as under DDP.

    Raises:
        ValueError: at the start of training, for a parameter without axes, which has no parts; recipes are checked for them before.
    """

    def configure_ddp(self) -> None:
        task = self.lightning_module
        check_parts(task)
        for parameter in task.parameters():
            parameter.data = parameter.data.contiguous()  # the one format that can be cut
            dist.broadcast(parameter.data, 0)
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        for model in (task.model, *([task.average.model] if task.average else [])):
            shard(model, mesh)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self._share_buffers()

    def on_validation_start(self) -> None:
        self._share_buffers()
        gather(self.lightning_module.final_model)

    def on_validation_end(self) -> None:
        model = self.lightning_module.final_model
        for part in _parts(model):
            part.set_reshard_after_forward(part is not model, recurse=False)
            part.reshard()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The task's, whole, on rank 0; empty tensors on the others."""
        return self._whole(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """As DDP has it, whole, on rank 0; empty tensors on the others."""
        return self._whole(super().optimizer_state(optimizer))

    def load_optimizer_state_dict(self, checkpoint: dict[str, Any]) -> None:
        """Each rank takes its part of what is whole."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"]):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            for number, values in state["state"].items():
                state["state"][number] = {key: _part(value, parameters[number]) for key, value in values.items()}
            optimizer.load_state_dict(state)

    def make_whole(self) -> None:
        """After training: the task holds its final model alone, with all of its weights; a call of every rank."""
        task = self.lightning_module
        model = build_model(task.final_model.config)
        model.load_state_dict(tree_map_only(DTensor, DTensor.full_tensor, task.final_model.state_dict()))
        task.model, task.average = model, None

    def teardown(self) -> None:
        """Without moving to the CPU what lies in parts on devices."""
        self.cluster_environment.teardown()
        self.precision_plugin.teardown()
        self.accelerator.teardown()

    def _share_buffers(self) -> None:
        for buffer in self.lightning_module.buffers():
            dist.broadcast(buffer, 0)

    def _whole(self, state: dict[str, Any]) -> dict[str, Any]:
        def assemble(part: DTensor) -> Tensor:
            whole = part.full_tensor()
            return whole.cpu() if self.is_global_zero else torch.empty(0)

        return tree_map_only(DTensor, assemble, state)


def check_parts(module: nn.Module) -> None:
    """Raises ValueError for a parameter without axes, which has no parts."""
    for name, parameter in module.named_parameters():
        if parameter.ndim == 0:
            raise bad_value(
                "trainer.strategy", got=f"fsdp, and {name} without axes", expected="parameters that can be cut into parts",
                do="Use ddp, or a layer without it.")


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Cut each block of a model, and what lies between, into parts over a mesh."""
    for block in [module for module in model.modules() if isinstance(module, Block)]:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def gather(model: nn.Module) -> None:
    """All weights of a model, if it lies in parts, until it is told to reshard; a call of every rank."""
    for part in _parts(model):
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()


def _parts(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _part(value: object, parameter: Tensor) -> object:
    """This rank's part of a state that has the shape of its parameter; any other as it is."""
    if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
