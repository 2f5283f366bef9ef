"""Checks before the first step: twice differentiable network, and an engine that delivers the right gradients."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from provscale.errors import UserError
from provscale.guidance.executors import run_network, twice_differentiable_attention
from provscale.guidance.loss import classification_loss, guidance_loss
from provscale.guidance.step import GuidedStep
from provscale.randomness import seed_everything
from provscale.sample import Sample

if TYPE_CHECKING:
    from provscale.engine import Engine

TOLERANCE = {None: 1e-4, torch.bfloat16: 5e-2}


def plain_gradients(step: GuidedStep, sample: Sample, name: str) -> tuple[Tensor, Tensor]:
    """Input gradient of the first target and d L_total / d parameter, by PyTorch's ordinary double backward.

    No carrier, no executor, no engine: the reference the prepared step is compared with.

    Raises:
        UserError: an operation of the network has no second derivative.
    """
    inputs = sample.inputs.detach().requires_grad_()
    settings = step.settings()
    try:
        with twice_differentiable_attention():
            logits = run_network(step.network, inputs, settings.autocast_dtype)
        (input_gradient,) = torch.autograd.grad(
            logits.gather(1, sample.targets[:, :1]).sum(), inputs, retain_graph=True
        )
        loss = classification_loss(logits, sample, settings.class_weights)
        if sample.guided and settings.alpha:
            loss = loss + settings.alpha * guidance_loss(logits, inputs, sample, settings.reduction, settings.masked)
        (gradient,) = torch.autograd.grad(loss, step.network.get_parameter(name))
    except RuntimeError as error:
        text = str(error).splitlines()[0]
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise UserError(
            f"model: the network cannot be differentiated twice ({text[:200]}); replace that operation by "
            "differentiable ones, or train the baseline with guidance.alpha 0"
        ) from None
    return input_gradient.float(), gradient


def checked_parameter(network: nn.Module) -> str:
    """The parameter that is compared: the first trainable one, behind the whole network's derivatives."""
    return next(name for name, parameter in network.named_parameters() if parameter.requires_grad)


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """|| found - expected || / || expected ||, 0 where both vanish."""
    scale = float(expected.norm())
    difference = float((found.to(expected.device) - expected).norm())
    return difference / scale if scale > 0 else difference


def self_check(engine: Engine, step: GuidedStep, reference: GuidedStep, sample: Sample, key: tuple[int, ...]) -> None:
    """Compares the prepared step with `reference`, an unwrapped copy of it. All processes must call it.

    Leaves parameters, buffers and gradients as they were.

    Raises:
        UserError: they differ, so the engine (or its settings) would train something else.
    """
    name = checked_parameter(reference.network)
    buffers = [buffer.clone() for buffer in step.network.buffers()]
    reference.train()
    seed_everything(*key)
    input_expected, gradient_expected = plain_gradients(reference, sample, name)
    gradient_expected = engine.mean(gradient_expected.detach())
    step.train()
    engine.prepared.train()
    seed_everything(*key)
    gradient_found = engine.check_gradient(sample, name)
    with torch.no_grad():
        for buffer, before in zip(step.network.buffers(), buffers, strict=True):
            buffer.copy_(before)
    seed_everything(*key)
    input_found = engine.predict(sample, frozenset({"input_gradient"}))["input_gradient"]
    with torch.no_grad():
        for buffer, before in zip(step.network.buffers(), buffers, strict=True):
            buffer.copy_(before)
    differences = {
        "input gradient": relative_difference(input_found, input_expected),
        f"gradient of '{name}'": relative_difference(gradient_found, gradient_expected),
    }
    tolerance = TOLERANCE[step.autocast_dtype]
    worst = max(engine.gather(max(differences.values())))
    if not worst <= tolerance:
        raise UserError(
            f"self-check: the prepared step's {max(differences, key=lambda what: differences[what])} differs from an "
            f"unwrapped copy's by {worst:.2g} relative (allowed {tolerance:g}); the engine '{engine.name}' would train "
            "something else: check its settings (clipping, precision), or disable train.self_check to go on"
        )


def unwrapped_copy(step: GuidedStep) -> GuidedStep:
    """A copy taken before the engine prepares the step."""
    return copy.deepcopy(step)
