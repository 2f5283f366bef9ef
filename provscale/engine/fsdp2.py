"""FSDP2: PyTorch's `fully_shard` on the whole step.

Used directly, not through Accelerate's FSDP 2 path: that one wraps blocks by a policy, and a block's hooks would fire
inside the step, whose second derivative needs all parameters together. As one unit, parameters are gathered for a
step; parameters, gradients and optimizer state are sharded in between.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard

from provscale.config import Config
from provscale.engine.base import Engine, environment_without, refuse_recorded_steps
from provscale.errors import UserError
from provscale.guidance.step import GuidedStep
from provscale.sample import Sample


class FSDP2Engine(Engine):
    """Fully sharded data parallel; a checkpoint can be resumed on another number of processes."""

    name = "fsdp2"
    moves_parameters = True

    def __init__(self, config: Config) -> None:
        version = os.environ.get("FSDP_VERSION", "1")
        if version != "2":
            raise UserError(f"launch config: fsdp_version is {version}, must be 2 (see launch/fsdp2.yaml)")
        for key in ("fsdp_offload_params", "fsdp_activation_checkpointing"):
            if os.environ.get(key.upper(), "false").lower() == "true":
                raise UserError(f"launch config: {key} is true, which is not supported; remove it")
        refuse_recorded_steps(config, "FSDP2")
        # Accelerate is to provide processes and devices only.
        with environment_without("ACCELERATE_USE_FSDP"):
            super().__init__(config)
        self.micro_batches = 0

    # ---- training ------------------------------------------------------------------------------------------------
    def prepare(self, step: GuidedStep, optimizer: torch.optim.Optimizer) -> None:
        """Raises UserError for a parameter without dimensions, which cannot be sharded."""
        # Shards are cut from contiguous memory, and NCCL sends no other: channels last ends here.
        step.to(self.device).to(memory_format=torch.contiguous_format)
        names = {id(parameter): name for name, parameter in step.named_parameters()}
        for name, parameter in step.named_parameters():
            if parameter.dim() == 0:
                raise UserError(
                    f"model: parameter '{name}' is a scalar, which FSDP2 cannot shard; use launch/zero3.yaml"
                )
        for tensor in (*step.parameters(), *step.buffers()):
            dist.broadcast(tensor.detach(), src=0)
        mesh = init_device_mesh(self.device.type, (self.world_size,))
        # The carrier's backward needs no parameter values, so gathering them again for it would be in vain.
        fully_shard(step, mesh=mesh, reshard_after_forward=False, shard_placement_fn=self.placement)
        sharded = dict(step.named_parameters())
        for group in optimizer.param_groups:
            group["params"] = [sharded[names[id(parameter)]] for parameter in group["params"]]
            if isinstance(optimizer, torch.optim.SGD):
                group["fused"] = False  # sharded tensors have none
        self.step = self.prepared = step
        self.optimizer = optimizer

    def placement(self, parameter: nn.Parameter) -> Shard:
        """The dimension to cut: the first one that gives equal pieces, so that a [1, N, D] tensor is shared too."""
        sizes = parameter.shape
        return Shard(next((axis for axis, size in enumerate(sizes) if size % self.world_size == 0), 0))

    def predict(self, sample: Sample, outputs: frozenset[str]) -> dict[str, Tensor]:
        predictions = super().predict(sample, outputs)
        self.prepared.reshard()
        return predictions

    def accumulate(self) -> AbstractContextManager[None]:
        """Every micro-batch is reduced at once: its gradient is stored as a shard."""
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        (loss / self.config.train.accumulation).backward()

    def update(self, skip: Tensor | None = None) -> None:
        self.leave_out(skip)
        self.micro_batches += 1
        if self.micro_batches % self.config.train.accumulation:
            return
        if self.config.optim.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.step.parameters(), self.config.optim.clip_norm)
        with self.put_back(skip):
            self.optimizer.step()
        self.optimizer.zero_grad()

    @contextmanager
    def put_back(self, skip: Tensor | None) -> Iterator[None]:
        """Where `skip` is 1, what SGD does inside is undone by the device; the host does not wait.

        Fused optimizers look at `skip` themselves, but fused SGD knows no sharded tensors. It costs a copy of this
        process's shards and of their momentum.
        """
        if skip is None or not isinstance(self.optimizer, torch.optim.SGD):
            yield
            return
        before = {key: shard.clone() for key, shard in self.shards().items()}
        yield
        leave_out = skip.bool()
        for key, shard in self.shards().items():
            # Momentum that has just begun was nothing before.
            shard.copy_(torch.where(leave_out, before.get(key, torch.zeros_like(shard)), shard))

    def shards(self) -> dict[tuple[int, str], Tensor]:
        """This process's pieces of parameters and momentum, each the optimizer's own memory."""
        found = {}
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for number, parameter in enumerate(parameters):
            momentum = self.optimizer.state.get(parameter, {}).get("momentum_buffer")
            for name, value in (("parameter", parameter), ("momentum", momentum)):
                if value is not None:
                    found[number, name] = value.detach().to_local()
        return found

    def gradient_of(self, sample: Sample, name: str) -> Tensor:
        self.losses(sample)["loss"].backward()
        gradient = self.network.get_parameter(name).grad
        assert isinstance(gradient, DTensor)
        whole = gradient.full_tensor().clone()
        self.optimizer.zero_grad()
        return whole

    # ---- state ---------------------------------------------------------------------------------------------------
    def network_state(self) -> dict[str, Tensor]:
        state = {}
        for name, value in self.network.state_dict().items():
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            state[name] = whole.detach().cpu().clone(memory_format=torch.contiguous_format)
        return state

    def load_network(self, state: dict[str, Tensor]) -> None:
        set_model_state_dict(self.network, dict(state), options=StateDictOptions(full_state_dict=True))

    def save(self, folder: Path) -> None:
        """Every process writes its shards, with PyTorch's distributed checkpoint."""
        try:
            dcp.save(self.state(), checkpoint_id=folder)
        except CheckpointException as error:  # is no Exception
            raise OSError(str(next(iter(error.failures.values()))[0])) from None

    def load(self, folder: Path) -> None:
        """Reads the shards of any number of processes."""
        state = self.state()
        dcp.load(state, checkpoint_id=folder)
        set_state_dict(self.step, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])

    def state(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.step, self.optimizer)
        return {"model": model, "optimizer": optimizer}
