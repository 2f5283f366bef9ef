"""The `compiled` executor: the whole step, both derivatives included, as one graph compiled by TorchInductor.

`torch.compile` does not differentiate twice. So the step is traced first: `make_fx` runs it on tensors without data
and writes down every operation of forward, input gradient and parameter gradient. What remains is a graph without
autograd, which any first-order compiler accepts, and in which BatchNorm's double backward can be fused.

What Inductor compiled stays on disk (`TORCHINDUCTOR_CACHE_DIR`): a run that is started again waits for the trace alone.
"""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from provscale.errors import UserError
from provscale.guidance.executors.base import EXECUTORS
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


def fix_shapes(network: nn.Module, executor: str) -> None:
    """Asks every module whose shapes may depend on the data, one with a method `fix_shapes`, to keep them fixed."""
    for module in network.modules():
        ask = getattr(module, "fix_shapes", None)
        if ask is not None:
            ask(executor)


def compiler(backend: str) -> Callable[..., Callable[..., Any]]:
    """From a graph and its inputs to a function. Inductor's keeps what it compiled on disk, for the next process."""
    if backend == "inductor":
        from torch._inductor import standalone_compile

        return functools.partial(standalone_compile, dynamic_shapes="from_example_inputs")
    from torch._dynamo import lookup_backend

    return lookup_backend(backend)


class TracedStep:
    """One signature's step as a graph over a flat list of tensors.

    The graph takes the network's parameters, its buffers (which it updates in place, as BatchNorm does) and the
    step's arguments, and returns the losses and the gradients there are. Random operations stay in the graph
    and draw from the global generator on every run.
    """

    def __init__(
        self,
        network: nn.Module,
        parameters: Sequence[Tensor],
        sample: Sample,
        objective: Objective,
        alpha: float | Tensor,
    ) -> None:
        self.parameters = dict(network.named_parameters())
        self.buffers = dict(network.named_buffers())
        self.objective = objective
        self.module = StepModule(EagerExecutor(), network)
        trained = {id(parameter) for parameter in parameters}
        self.trained = [name for name, parameter in self.parameters.items() if id(parameter) in trained]
        arguments = step_arguments(sample, objective, alpha)
        self.names = list(arguments)
        self.graph: fx.GraphModule = make_fx(self.flat_step, tracing_mode="fake", _allow_non_fake_inputs=True)(
            *self.tensors(arguments)
        )
        self.graph.graph.eliminate_dead_code()
        self.graph.recompile()

    def tensors(self, arguments: dict[str, Tensor]) -> list[Tensor]:
        """What the graph is called with; parameters and buffers are the network's own memory."""
        owned = [tensor.detach() for tensor in (*self.parameters.values(), *self.buffers.values())]
        return [*owned, *(arguments[name] for name in self.names)]

    def flat_step(self, *tensors: Tensor) -> list[Tensor]:
        remaining = iter(tensors)
        state = {name: next(remaining) for name in (*self.parameters, *self.buffers)}
        for name in self.trained:
            state[name] = state[name].detach().requires_grad_()
        sample, objective, alpha = from_arguments(dict(zip(self.names, remaining, strict=True)), self.objective)
        swapped = {f"network.{name}": tensor for name, tensor in state.items()}
        arguments = ([state[name] for name in self.trained], sample, objective, alpha)
        losses, gradients = functional_call(self.module, swapped, arguments, {"verify": True})
        self.result, flat = FlatResult.flatten(losses, gradients)
        return flat


@EXECUTORS.register("compiled")
class CompiledExecutor:
    """Runs a compiled graph of the step, one for every signature; where that fails, the step runs eagerly.

    Random numbers are drawn by PyTorch's own kernels (`fallback_random`), so dropout is that of the eager step.

    Args:
        backend: `inductor`, or another backend of `torch.compile` that compiles a graph of ATen operations.
    """

    def __init__(self, backend: str = "inductor") -> None:
        self.backend = backend
        self.steps: dict[Hashable, tuple[TracedStep, Callable[..., Any]] | None] = {}
        self.warned = False

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy (the self-check makes one) starts with nothing compiled: graphs hold the network they were made for.
        return type(self), (self.backend,)

    def __call__(
        self,
        network: nn.Module,
        parameters: Sequence[Tensor],
        sample: Sample,
        objective: Objective,
        alpha: float | Tensor,
        verify: bool = False,
    ) -> tuple[Losses, Gradients]:
        key = signature(network, parameters, sample, objective, alpha)
        if key not in self.steps:
            self.steps[key] = self.compile(network, parameters, sample, objective, alpha)
        compiled = self.steps[key]
        if compiled is None:
            return objective(network, parameters, sample, alpha, verify=verify)
        traced, function = compiled
        with torch.no_grad():
            return traced.result.restore(function(*traced.tensors(step_arguments(sample, objective, alpha))))

    def compile(
        self,
        network: nn.Module,
        parameters: Sequence[Tensor],
        sample: Sample,
        objective: Objective,
        alpha: float | Tensor,
    ) -> tuple[TracedStep, Callable[..., Any]] | None:
        """Traces, compiles and tries one signature; None, after one warning, where that fails."""
        # The compiler is two thirds of what importing the package would load.
        import torch._inductor.config as inductor_config

        started = time.perf_counter()
        device = sample.inputs.device
        fix_shapes(network, "compiled")
        try:
            traced = TracedStep(network, parameters, sample, objective, alpha)
            tensors = traced.tensors(step_arguments(sample, objective, alpha))
            with torch.no_grad(), inductor_config.patch(fallback_random=True):
                function = compiler(self.backend)(traced.graph, tensors)
                with state_preserved(network, device):
                    function(*tensors)
        except (UserError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a compiler's failures have no common type
            if not self.warned:
                first = str(error).strip().partition("\n")[0] or "no reason given"
                warnings.warn(
                    f"guidance.executor: the step could not be compiled and runs eagerly ({type(error).__name__}: "
                    f"{first[:300]})",
                    RuntimeWarning,
                    stacklevel=2,
                )
                self.warned = True
            return None
        announce(
            f"compiled the step for inputs {list(sample.inputs.shape)} in {time.perf_counter() - started:.1f} s "
            f"({len(traced.graph.graph.nodes)} operations, {self.backend})"
        )
        return traced, function
