"""The engine: everything that depends on how many processes train and how they share the work.

`Engine` itself is one process or DDP, through Accelerate.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    gather_object,
)
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook, bf16_compress_hook

from provscale.config import Config
from provscale.errors import UserError
from provscale.guidance.step import GuidedStep
from provscale.sample import Sample
from provscale.tracking.terminal import console


@contextmanager
def environment_without(*names: str) -> Iterator[None]:
    """Hides environment variables that Accelerate would read, and puts them back."""
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


class Engine:
    """One process, or several that hold the whole model each (DDP).

    Attributes:
        name: written into checkpoints; one engine cannot read another's.
        moves_parameters: they lie elsewhere in memory at every step.
    """

    name = "ddp"
    moves_parameters = False

    def __init__(self, config: Config) -> None:
        handlers: list[Any] = [
            # The trainer averages buffers itself, on every engine alike.
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
        ]
        if not torch.cuda.is_available() and "WORLD_SIZE" in os.environ:
            handlers.append(InitProcessGroupKwargs(backend="gloo"))
        if config.train.reduction != "fp32" and self.name != "ddp":
            raise UserError(
                f"train.reduction: is {config.train.reduction}, which only DDP can do, but the launch config asks for "
                f"{self.name}; set it to fp32, or use launch/ddp.yaml"
            )
        # Precision is the step's own business (autocast inside it), so engines do not change numbers.
        self.accelerator = Accelerator(
            mixed_precision="no",
            # A plugin, because the plain argument yields to an environment variable.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=config.train.accumulation),
            kwargs_handlers=handlers,
            **self.accelerator_arguments(),
        )
        self.config = config
        self.prepared: Any = None
        self.optimizer: Any = None
        self.reduces_exactly = False

    def accelerator_arguments(self) -> dict[str, Any]:
        return {"cpu": not torch.cuda.is_available()}

    # ---- who and where -------------------------------------------------------------------------------------------
    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def world_size(self) -> int:
        return self.accelerator.num_processes

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    # ---- training ------------------------------------------------------------------------------------------------
    def prepare(self, step: GuidedStep, optimizer: torch.optim.Optimizer) -> None:
        """Hands step and optimizer to the engine. `step` stays usable by name of its parameters."""
        self.step = step
        with warnings.catch_warnings():
            # PyTorch suggests another argument instead of `broadcast_buffers`, which Accelerate cannot pass on.
            warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
            self.prepared, self.optimizer = self.accelerator.prepare(step, optimizer)
        if self.config.train.reduction == "bf16" and self.world_size > 1:
            # DDP reads a hook's annotations, and those of a method are text here.
            self.prepared.register_comm_hook(None, lambda state, bucket: self.reduce_in_bf16(bucket))

    def reduce_in_bf16(self, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        """DDP's hook: the mean of one bucket of gradients over processes, sent in bf16, but exact in `gradient_of`."""
        hook = allreduce_hook if self.reduces_exactly else bf16_compress_hook
        everyone = dist.group.WORLD
        assert everyone is not None  # DDP has been made
        return hook(everyone, bucket)

    def prepare_for_evaluation(self, step: GuidedStep) -> None:
        """Takes a step that only predicts: each process holds the whole network, and there is no optimizer."""
        self.step = self.prepared = step.to(self.device)

    def losses(self, sample: Sample, alpha: float | None = None) -> dict[str, Tensor]:
        """One training forward pass; see `GuidedStep.forward`."""
        anchor = torch.zeros((), device=self.device, requires_grad=True)
        return self.prepared(sample, anchor, alpha=alpha)

    def predict(self, sample: Sample, outputs: frozenset[str]) -> dict[str, Tensor]:
        """A forward pass for evaluation; all processes must take part."""
        # Where gradients are on, a forward pass of DDP prepares it to reduce at the next backward pass, whosever it is.
        with torch.no_grad():
            return self.prepared(sample, outputs=outputs)

    def accumulate(self) -> Any:
        """Context of one micro-batch."""
        return self.accelerator.accumulate(self.prepared)

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def update(self, skip: Tensor | None = None) -> None:
        """Clips if the config says so, steps and clears gradients; does nothing within an accumulation.

        Args:
            skip: FP32 scalar on the device; where it is 1, parameters and optimizer state stay as they are. The host
                does not wait for it: fused optimizers look themselves, others ignore it (but see FSDP2).
        """
        self.leave_out(skip)
        if self.accelerator.sync_gradients and self.config.optim.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.step.parameters(), self.config.optim.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def leave_out(self, skip: Tensor | None) -> None:
        """Tells a fused optimizer about `skip`; the attribute is the one of PyTorch's GradScaler."""
        optimizer = self.optimizer
        while hasattr(optimizer, "optimizer"):
            optimizer = optimizer.optimizer
        groups = optimizer.param_groups
        # Offloaded ones are the host's, which would wait. (ZeRO-3 shows its optimizer parameters in `step` only.)
        here = skip is not None and all(p.device == skip.device for group in groups for p in group["params"])
        if here and groups[0].get("fused"):
            optimizer.found_inf = skip

    def gradient_of(self, sample: Sample, name: str) -> Tensor:
        """The gradient, averaged over processes, that the optimizer would get for one parameter of the network; without
        the rounding of `train.reduction`."""
        self.reduces_exactly = True
        self.accelerator.backward(self.losses(sample)["loss"])
        self.reduces_exactly = False
        gradient = self.network.get_parameter(name).grad
        assert gradient is not None
        gradient = gradient.detach().clone() * self.config.train.accumulation
        self.optimizer.zero_grad()
        return gradient

    # ---- agreement -----------------------------------------------------------------------------------------------
    def mean(self, values: Tensor) -> Tensor:
        """Mean of a tensor over processes."""
        # NCCL takes contiguous memory only; a convolution's weight gradient often is not.
        return self.accelerator.reduce(values.contiguous(), "mean")

    def gather(self, value: Any) -> list[Any]:
        """A picklable object of every process, in rank order, on every process."""
        return gather_object([value])

    def on_main(self, action: Callable[[], Any]) -> Any:
        """Runs `action` on the main process; every process gets its result, or its UserError or OSError."""
        result: Any = None
        problem = ""
        if self.is_main:
            try:
                result = action()
            except (UserError, OSError, RuntimeError, SafetensorError) as error:
                # All of them, for the others wait: a full disk is an OSError, RuntimeError or SafetensorError.
                problem = str(error) or type(error).__name__
        result, problem = self.gather((result, problem))[0]
        if problem:
            raise UserError(problem)
        return result

    def print(self, text: str) -> None:
        """A line on standard error, from the main process only."""
        if self.is_main:
            console.print(text, highlight=False, markup=False)

    def average_buffers(self) -> None:
        """Makes floating-point buffers (BatchNorm statistics) equal: their mean over processes."""
        if self.world_size == 1:
            return
        buffers = [buffer for buffer in self.network.buffers() if buffer.is_floating_point()]
        if not buffers:
            return
        flat = torch.cat([buffer.flatten() for buffer in buffers])
        dist.all_reduce(flat)
        flat /= self.world_size
        for buffer, part in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
            buffer.copy_(part.view_as(buffer))

    # ---- state ---------------------------------------------------------------------------------------------------
    @property
    def network(self) -> nn.Module:
        return self.step.network

    def network_state(self) -> dict[str, Tensor]:
        """The whole network's state on the CPU, contiguous as safetensors wants it; all processes must call it."""
        return {
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, value in self.network.state_dict().items()
        }

    def load_network(self, state: dict[str, Tensor]) -> None:
        """Gives the network a whole state, the same on all processes, which must all call it. For evaluation: what the
        optimizer keeps of the parameters (ZeRO's own copies) stays as it is."""
        self.network.load_state_dict(state)

    def shapes(self) -> dict[str, list[int]]:
        """Shape of every parameter and buffer of the network by name."""
        return {name: list(value.shape) for name, value in self.network.state_dict().items()}

    def check_world_size(self, saved: int, folder: Path) -> None:
        """Raises UserError when a checkpoint of `saved` processes cannot be read by this engine's number."""

    def save(self, folder: Path) -> None:
        """Writes model and optimizer into a folder; all processes must call it."""
        if self.is_main:
            save_file(self.network_state(), folder / "model.safetensors")
            torch.save(self.optimizer.optimizer.state_dict(), folder / "optimizer.pt")

    def load(self, folder: Path) -> None:
        """Restores what `save` wrote; all processes must call it."""
        self.load_network(load_file(folder / "model.safetensors", device="cpu"))
        state = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
        self.optimizer.optimizer.load_state_dict(state)


def refuse_recorded_steps(config: Config, name: str) -> None:
    """Raises UserError for an executor that records the step, on an engine that moves parameters between steps."""
    executor = config.guidance.executor
    if executor.startswith("cuda_graph"):
        raise UserError(
            f"guidance.executor: is {executor}, which records where parameters lie in memory, but {name} moves them at "
            "every step; use eager or compiled, or an engine that leaves them in place (launch/ddp.yaml, "
            "launch/zero1.yaml, launch/zero2.yaml)"
        )


def check_supported(network: nn.Module, world_size: int) -> None:
    """Raises UserError for modules that cannot be differentiated twice in this setting."""
    for name, module in network.named_modules():
        if isinstance(module, nn.SyncBatchNorm) and world_size > 1:
            raise UserError(
                f"model: layer '{name}' is a SyncBatchNorm, which has no second derivative over several processes; "
                "use BatchNorm (statistics per process), GroupNorm, or one process"
            )
