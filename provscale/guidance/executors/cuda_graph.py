"""The `cuda_graph` executors: the whole step recorded once, then replayed with one launch.

Small networks and small batches are bound by launching kernels, and double backward launches three times as many.
A recording reads and writes fixed memory: a step copies its sample in, replays, and copies losses and gradients out.
Hooks do not run inside a recording; none have to, since engines hook the gradient carrier, which stays outside.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from provscale.errors import UserError
from provscale.guidance.executors.base import EXECUTORS, Executor
from provscale.guidance.executors.compiled import CompiledExecutor, fix_shapes
from provscale.guidance.executors.eager import EagerExecutor
from provscale.guidance.executors.recording import (
    FlatResult,
    StepModule,
    announce,
    from_arguments,
    signature,
    state_preserved,
    step_arguments,
)
from provscale.guidance.objective import Gradients, Losses, Objective
from provscale.sample import Sample

WARM_UP = 3
"""Runs before a capture, in which libraries choose algorithms and allocate workspaces."""
MOVES_ALLOWED = 4
"""Captures repeated because parameters lie elsewhere in memory, before that is taken for an engine that moves them."""


class Recording(Protocol):
    """Something that runs `function` again on the same memory: reads what it read, writes `outputs` anew."""

    outputs: list[Tensor]

    def replay(self) -> None: ...


class CudaRecording:
    """A CUDA graph. Its random operations use the device's default generator, whose state a replay advances."""

    def __init__(self, function: Callable[[], list[Tensor]], pool: Any) -> None:
        # What the warm-up has cached would stay beside the graph's own memory.
        torch.cuda.empty_cache()
        self.graph = torch.cuda.CUDAGraph()
        # thread_local: NCCL's watchdog and the loader's pinning thread may call CUDA meanwhile.
        with torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):
            self.outputs = function()

    def replay(self) -> None:
        self.graph.replay()


class RerunRecording:
    """The same on any device without a graph: runs the function once more and writes its results in place."""

    def __init__(self, function: Callable[[], list[Tensor]], pool: Any) -> None:
        self.function = function
        self.outputs = function()

    def replay(self) -> None:
        for output, value in zip(self.outputs, self.function(), strict=True):
            output.copy_(value)


class RecordedStep:
    """One signature's step on static memory.

    Args:
        inner: executor whose operations are recorded.
        record: `CudaRecording` or its stand-in.
        pool: memory pool shared by all recordings of one executor.
    """

    def __init__(
        self,
        inner: Executor,
        record: Callable[[Callable[[], list[Tensor]], Any], Recording],
        pool: Any,
        network: nn.Module,
        parameters: Sequence[Tensor],
        sample: Sample,
        objective: Objective,
        alpha: float | Tensor,
    ) -> None:
        device = sample.inputs.device
        self.static = {
            name: tensor.detach().clone() for name, tensor in step_arguments(sample, objective, alpha).items()
        }
        static = from_arguments(self.static, objective)
        # New leaves on the parameters' memory. A parameter's own accumulation node may be alive (DDP and ZeRO keep it,
        # and so does any loss that still exists); it belongs to the default stream, which a capture must not touch.
        leaves = {id(parameter): parameter.detach().requires_grad_() for parameter in parameters}
        swapped = {f"network.{name}": leaves.get(id(p), p.detach()) for name, p in network.named_parameters()}
        module = StepModule(inner, network)

        def run(verify: bool = False) -> list[Tensor]:
            # A cast of the weights cached outside would be read, stale, by every replay.
            torch.clear_autocast_cache()
            arguments = (list(leaves.values()), *static)
            self.result, flat = FlatResult.flatten(*functional_call(module, swapped, arguments, {"verify": verify}))
            return flat

        with state_preserved(network, device):
            with side_stream(device):
                for number in range(WARM_UP if device.type == "cuda" else 1):
                    run(verify=number == 0)
            try:
                self.recording = record(run, pool)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                reason = str(error).partition("\n")[0][:300]
                raise UserError(
                    f"guidance.executor: the step cannot be recorded as a CUDA graph ({reason}); set it to eager"
                ) from None

    def __call__(self, sample: Sample, objective: Objective, alpha: float | Tensor) -> tuple[Losses, Gradients]:
        for name, tensor in step_arguments(sample, objective, 0.0).items():
            self.static[name].copy_(tensor, non_blocking=True)
        if "alpha" in self.static:
            self.static["alpha"].fill_(alpha)  # no transfer, so the host does not wait
        self.recording.replay()
        # Copies: the next replay overwrites its outputs, and the caller may still hold these. One call for all.
        copies = [torch.empty_like(output) for output in self.recording.outputs]
        torch._foreach_copy_(copies, self.recording.outputs)
        return self.result.restore(copies)


@contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """A stream beside the current one, as capture needs for its warm-up; nothing on a CPU."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)


class RecordingExecutor:
    """Records the step of every signature once, then replays it.

    A new shape, mode or kind of step (guided or not) is recorded when it first comes; alpha and the learning rate
    may change freely. A recording is bound to the memory of parameters and buffers: when they move (`network.to`),
    it is made again. What runs in Python happens once, at recording: a network must not draw from Python's or
    NumPy's random generators, and must not decide by a tensor's value.

    Args:
        inner: executor whose operations are recorded.
        record: how: `CudaRecording`, or `RerunRecording` where there is no CUDA device.
    """

    def __init__(
        self,
        inner: Executor | None = None,
        record: Callable[[Callable[[], list[Tensor]], Any], Recording] = CudaRecording,
    ) -> None:
        self.inner = inner or EagerExecutor()
        self.record = record
        self.steps: dict[Hashable, tuple[tuple[int, ...], RecordedStep]] = {}
        self.pool: Any = None
        self.moves = 0

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy (the self-check makes one) starts with nothing recorded.
        return type(self), (self.inner, self.record)

    def __call__(
        self,
        network: nn.Module,
        parameters: Sequence[Tensor],
        sample: Sample,
        objective: Objective,
        alpha: float | Tensor,
        verify: bool = False,
    ) -> tuple[Losses, Gradients]:
        if self.pool is None:
            self.pool = self.memory_pool(sample.inputs.device)
        key = signature(network, parameters, sample, objective, alpha)
        addresses = tuple(tensor.data_ptr() for tensor in (*network.parameters(), *network.buffers()))
        found = self.steps.get(key)
        if found is None or found[0] != addresses:
            self.moves += found is not None
            if self.moves > MOVES_ALLOWED:
                raise UserError(
                    "guidance.executor: is cuda_graph, but parameters move in memory between steps (as under ZeRO-3 "
                    "and FSDP2); use eager or compiled, or an engine that leaves them in place"
                )
            fix_shapes(network, "cuda_graph")
            step = RecordedStep(self.inner, self.record, self.pool, network, parameters, sample, objective, alpha)
            self.steps[key] = found = (addresses, step)
            announce(f"recorded the step for inputs {list(sample.inputs.shape)}")
        return found[1](sample, objective, alpha)

    def memory_pool(self, device: torch.device) -> Any:
        """The pool of all recordings: they never run at the same time, so they can share their scratch memory."""
        if self.record is not CudaRecording:
            return None
        if device.type != "cuda":
            raise UserError(
                f"guidance.executor: is cuda_graph, but the step runs on '{device}'; move network and samples to a "
                "CUDA device, or use eager"
            )
        return torch.cuda.graph_pool_handle()


def require_cuda(name: str) -> None:
    """Raises UserError on a machine without a CUDA device."""
    if not torch.cuda.is_available():
        raise UserError(
            f"guidance.executor: is {name}, but this machine has no usable CUDA device; use eager or compiled"
        )


@EXECUTORS.register("cuda_graph")
def cuda_graph() -> Executor:
    """Records the eager step. Raises UserError without a CUDA device."""
    require_cuda("cuda_graph")
    return RecordingExecutor()


@EXECUTORS.register("cuda_graph_compiled")
def cuda_graph_compiled() -> Executor:
    """Records the compiled step. Raises UserError without a CUDA device."""
    require_cuda("cuda_graph_compiled")
    return RecordingExecutor(CompiledExecutor())
