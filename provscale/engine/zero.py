"""DeepSpeed ZeRO: stage 1 shards optimizer state over processes, 2 gradients too, 3 parameters too."""

from __future__ import annotations

import logging
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from accelerate import DeepSpeedPlugin
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero import GatheredParameters
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils import safe_get_full_grad, set_z3_leaf_modules
from deepspeed.utils.tensor_fragment import fragment_address
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from provscale.config import Config
from provscale.engine.base import Engine, environment_without, refuse_recorded_steps
from provscale.engine.zero_settings import FILE_VARIABLE, LAUNCH_VARIABLES, deepspeed_settings
from provscale.errors import UserError
from provscale.guidance.step import GuidedStep
from provscale.sample import Sample

# ZeRO updates flat pieces of all parameters, which only element-wise optimizers allow.
OPTIMIZERS = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)


class TupleStep(nn.Module):
    """The step with a tuple as its output: PyTorch's backward hooks, by which ZeRO-3 knows that a leaf module's
    gradients are complete, do not fire for a module that returns a dict.

    Attributes:
        names: of the last output's entries.
    """

    def __init__(self, step: GuidedStep) -> None:
        super().__init__()
        self.step = step
        self.names: tuple[str, ...] = ()

    def forward(self, *inputs: Any, **options: Any) -> tuple[Tensor, ...]:
        result = self.step(*inputs, **options)
        self.names = tuple(result)
        return tuple(result.values())


class DeepSpeedEngine(Engine):
    """ZeRO-1, 2 or 3, as the launch config's DeepSpeed JSON says.

    The step is ZeRO-3's leaf module: all parameters are gathered for one step, because the second derivative needs
    them together. What is sharded between steps is the state.
    """

    def __init__(self, config: Config) -> None:
        logger = logging.getLogger("DeepSpeed")
        logger.setLevel(logging.WARNING)
        # `prepare` allows only optimizers whose updates were compared with one process's.
        logger.addFilter(lambda record: "untested optimizer" not in record.getMessage())
        if not torch.cuda.is_available():
            # Only its inference uses this; building it takes a C++ compiler and a minute at the first start.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.settings = deepspeed_settings(config, int(os.environ.get("WORLD_SIZE", "1")))
        self.stage: int = self.settings["zero_optimization"]["stage"]
        self.name = f"zero{self.stage}"
        self.moves_parameters = self.stage == 3
        if self.moves_parameters:
            refuse_recorded_steps(config, "ZeRO-3")
        # Settled above; Accelerate would read the same once more, and refuse, or override, the settings made here.
        with environment_without(FILE_VARIABLE, "ACCELERATE_CONFIG_DS_FIELDS", *LAUNCH_VARIABLES.values()):
            super().__init__(config)

    def accelerator_arguments(self) -> dict[str, Any]:
        # cpu=True would switch DeepSpeed off; the device comes from the environment, see `build_engine`.
        return {"deepspeed_plugin": DeepSpeedPlugin(hf_ds_config=self.settings, zero3_init_flag=False)}

    # ---- training ------------------------------------------------------------------------------------------------
    def prepare(self, step: GuidedStep, optimizer: torch.optim.Optimizer) -> None:
        """Raises UserError for an optimizer that cannot work on pieces of parameters."""
        if type(optimizer) not in OPTIMIZERS:
            raise UserError(
                f"optim.name: {type(optimizer).__name__} cannot be used with ZeRO, which updates flat pieces of "
                f"parameters; allowed are {', '.join(kind.__name__ for kind in OPTIMIZERS)}, or use launch/ddp.yaml"
            )
        # DeepSpeed broadcasts and flattens the weights as bytes: channels last ends here.
        self.step = step.to(memory_format=torch.contiguous_format)
        self.tuple_step = TupleStep(step)
        if self.stage == 3:
            set_z3_leaf_modules(self.tuple_step, [TupleStep])
        self.prepared, self.optimizer = self.accelerator.prepare(self.tuple_step, optimizer)

    def losses(self, sample: Sample, alpha: float | None = None) -> dict[str, Tensor]:
        anchor = torch.zeros((), device=self.device, requires_grad=True)
        values = self.prepared(sample, anchor, alpha=alpha)
        return dict(zip(self.tuple_step.names, values, strict=True))

    def predict(self, sample: Sample, outputs: frozenset[str]) -> dict[str, Tensor]:
        with torch.no_grad():
            values = self.prepared(sample, outputs=outputs)
        return dict(zip(self.tuple_step.names, values, strict=True))

    def accumulate(self) -> AbstractContextManager[None]:
        """DeepSpeed counts micro-batches itself."""
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        # Not accelerator.backward, which would step the optimizer too.
        self.prepared.backward(loss)

    def update(self, skip: Tensor | None = None) -> None:
        self.leave_out(skip)
        self.prepared.step()

    def gradient_of(self, sample: Sample, name: str) -> Tensor:
        self.prepared.set_gradient_accumulation_boundary(True)
        self.prepared.backward(self.losses(sample)["loss"], scale_wrt_gas=False)
        gradient = safe_get_full_grad(self.network.get_parameter(name)).detach().clone()
        self.discard_gradients()
        return gradient

    def discard_gradients(self) -> None:
        """Forgets a backward pass that no step follows."""
        zero = self.optimizer.optimizer
        zero.zero_grad()
        if self.stage < 3:
            zero.micro_step_id = -1  # as after a step: the next backward pass overwrites, not adds
            for group in zero.averaged_gradients:
                zero.averaged_gradients[group] = None
        # None hands the decision back to DeepSpeed's counter.
        self.prepared._is_gradient_accumulation_boundary = None

    # ---- state ---------------------------------------------------------------------------------------------------
    def whole_parameters(self) -> AbstractContextManager[Any]:
        """Within it, every process holds all parameters."""
        return GatheredParameters(list(self.network.parameters())) if self.stage == 3 else nullcontext()

    def network_state(self) -> dict[str, Tensor]:
        with self.whole_parameters():
            return super().network_state()

    def load_network(self, state: dict[str, Tensor]) -> None:
        if self.stage < 3:
            super().load_network(state)
            return
        with GatheredParameters(list(self.network.parameters()), modifier_rank=0):
            if self.is_main:
                self.network.load_state_dict(state)
        buffers = dict(self.network.named_buffers())
        for name in buffers.keys() & state.keys():
            buffers[name].copy_(state[name])

    def shapes(self) -> dict[str, list[int]]:
        state = self.network.state_dict(keep_vars=True)
        return {name: list(getattr(value, "ds_shape", value.shape)) for name, value in state.items()}

    def check_world_size(self, saved: int, folder: Path) -> None:
        if saved != self.world_size:
            raise UserError(
                f"checkpoint.resume: {folder} was written by {saved} processes, this run has {self.world_size}; ZeRO's "
                f"pieces fit {saved} only: start that many, or give its model.safetensors to model.pretrained"
            )

    def save(self, folder: Path) -> None:
        """Every process writes its piece of the ZeRO state; the main one the network as well.

        Nothing here communicates after writing began, so a process that cannot write keeps no other waiting.
        """
        state = self.network_state()
        torch.save(self.optimizer.optimizer.state_dict(), self.piece(folder))
        if self.is_main:
            save_file(state, folder / "model.safetensors")

    def load(self, folder: Path) -> None:
        # ZeRO-3's parameters come back with its optimizer state, except those that are not trained.
        self.load_network(load_file(folder / "model.safetensors", device="cpu"))
        with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
            piece = torch.load(self.piece(folder), map_location="cpu", weights_only=True)
        pieces: list[Any] = [None] * self.world_size
        pieces[self.rank] = piece
        self.optimizer.optimizer.load_state_dict(pieces, load_from_fp32_weights=True)
        dist.barrier()

    def piece(self, folder: Path) -> Path:
        return folder / f"zero-{self.rank:05d}-of-{self.world_size:05d}.pt"
