"""Activation checkpointing that also holds for the second derivative.

`torch.utils.checkpoint` recomputes a block's activations in the first backward pass; with `create_graph=True` the graph
of that pass then keeps all of them, so a guided step needs more memory than without. Here the first derivative of a
block is itself a function that keeps only its inputs (the block's input and the incoming gradient) and recomputes
what its own derivative needs. A guided step then holds one block's graph at a time, for about twice the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from provscale.errors import UserError
from provscale.second_derivatives.attention import twice_differentiable_attention
from provscale.second_derivatives.substitute import fast_second_derivatives

Run = Callable[..., Tensor]


class Recompute(torch.autograd.Function):
    """`apply(run, inputs, *parameters)` is `run(inputs, *parameters)`, keeping only its arguments."""

    @staticmethod
    def forward(ctx: Any, run: Run, *arguments: Tensor) -> Tensor:
        ctx.run = run
        ctx.save_for_backward(*arguments)
        return run(*arguments)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        return None, *RecomputeBackward.apply(ctx.run, upstream[0], *ctx.saved_tensors)


class RecomputeBackward(torch.autograd.Function):
    """The gradients of `run` for its arguments, keeping only `run`'s arguments and the incoming gradient."""

    @staticmethod
    def forward(ctx: Any, run: Run, upstream: Tensor, *arguments: Tensor) -> tuple[Tensor | None, ...]:
        ctx.run = run
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(upstream, *arguments)
        _, gradients = first_derivative(run, upstream, arguments, create_graph=False)
        return tuple(gradients)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        outer, *arguments = ctx.saved_tensors
        outer = outer.detach().requires_grad_()
        leaves, gradients = first_derivative(ctx.run, outer, arguments, create_graph=True)
        pairs = [
            (gradient, weight)
            for gradient, weight in zip(gradients, upstream, strict=True)
            if gradient is not None and weight is not None and gradient.requires_grad
        ]
        wanted = [outer, *(leaf for leaf in leaves if leaf.requires_grad)]
        if not pairs:
            return (None,) * (2 + len(leaves))
        found = iter(torch.autograd.grad([g for g, _ in pairs], wanted, [w for _, w in pairs], allow_unused=True))
        for_outer = next(found)
        return None, for_outer, *(next(found) if leaf.requires_grad else None for leaf in leaves)


def first_derivative(
    run: Run, upstream: Tensor, arguments: Sequence[Tensor], create_graph: bool
) -> tuple[list[Tensor], list[Tensor | None]]:
    """Fresh leaves in place of the arguments, and the gradient of `run` for each (None where it has none)."""
    with torch.enable_grad():
        leaves = [argument.detach().requires_grad_(argument.requires_grad) for argument in arguments]
        outputs = run(*leaves, again=True)
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        found = iter(torch.autograd.grad(outputs, wanted, upstream, create_graph=create_graph, allow_unused=True))
        return leaves, [next(found) if leaf.requires_grad else None for leaf in leaves]


class RecomputedForward:
    """Stands in for a block's `forward`: in training it runs through `Recompute`."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block
        self.inside = False

    def __call__(self, inputs: Tensor, *others: Any, **named: Any) -> Any:
        block = self.block
        plain = self.inside or others or named or not isinstance(inputs, Tensor)
        if plain or not (torch.is_grad_enabled() and block.training):
            return type(block).forward(block, inputs, *others, **named)
        parameters = dict(block.named_parameters())
        run = BlockRun(self, list(parameters), inputs.device)
        return Recompute.apply(run, inputs, *parameters.values())


class BlockRun:
    """One forward pass of a block, repeatable: the same autocast and random numbers, buffers updated once."""

    def __init__(self, forward: RecomputedForward, names: list[str], device: torch.device) -> None:
        self.forward, self.names, self.device = forward, names, device
        self.autocast = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)
        self.cpu_random = torch.get_rng_state()
        self.device_random = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def __call__(self, inputs: Tensor, *parameters: Tensor, again: bool = False) -> Tensor:
        if not again:
            return self.call(inputs, parameters)
        enabled, dtype = self.autocast
        with (
            self.as_before(),
            torch.autocast(self.device.type, dtype=dtype, enabled=enabled, cache_enabled=False),
            twice_differentiable_attention(),
            fast_second_derivatives(self.forward.block),
        ):
            return self.call(inputs, parameters)

    def call(self, inputs: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        self.forward.inside = True
        try:
            # A copy: the block may begin with an operation in place, and its input is needed again.
            return functional_call(
                self.forward.block, dict(zip(self.names, parameters, strict=True)), (inputs.clone(),)
            )
        finally:
            self.forward.inside = False

    @contextmanager
    def as_before(self) -> Iterator[None]:
        """The random state of the first run inside; after it, random state and buffers as they were."""
        buffers = [buffer.clone() for buffer in self.forward.block.buffers()]
        with torch.random.fork_rng([self.device] if self.device_random is not None else []):
            torch.set_rng_state(self.cpu_random)
            if self.device_random is not None:
                torch.cuda.set_rng_state(self.device_random, self.device)
            yield
        for buffer, value in zip(self.forward.block.buffers(), buffers, strict=True):
            # .data: the graph may hold this buffer, whose values it does not use in train mode.
            buffer.data.copy_(value)


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The outermost repeated blocks: composite children, with parameters, of a Sequential or ModuleList."""
    found: list[nn.Module] = []

    def visit(module: nn.Module) -> None:
        for child in module.children():
            repeated = isinstance(module, (nn.Sequential, nn.ModuleList)) and not isinstance(
                child, (nn.Sequential, nn.ModuleList)
            )
            if repeated and any(True for _ in child.children()) and any(True for _ in child.parameters()):
                found.append(child)
            else:
                visit(child)

    visit(network)
    return found


def recompute_activations(network: nn.Module) -> int:
    """Lets every block of the network recompute its activations in training; returns how many blocks there are.

    Parameter names, numbers and random draws stay as they are. For the eager executor. A block that is called with
    more than one tensor runs as ever.

    Raises:
        UserError: the network has no repeated blocks (as VGG).
    """
    blocks = blocks_of(network)
    if not blocks:
        raise UserError(
            "train.checkpoint_activations: this network has no repeated blocks (composite modules in a Sequential or "
            "ModuleList) to recompute; set it to false, and use train.accumulation against lack of memory"
        )
    for block in blocks:
        block.forward = RecomputedForward(block)
    return len(blocks)
