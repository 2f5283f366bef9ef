"""Checks before the first step: twice differentiable network, and an engine that delivers the right gradients."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from provscale.errors import UserError
from provscale.guidance.loss import classification_loss, gradient_of, guidance_loss
from provscale.guidance.objective import is_guided
from provscale.guidance.step import GuidedStep
from provscale.predictions import run_network
from provscale.randomness import seed_everything
from provscale.sample import Sample
from provscale.second_derivatives.attention import twice_differentiable_attention
from provscale.second_derivatives.differentiability import not_twice_differentiable, refuse_first_order_operations

if TYPE_CHECKING:
    from provscale.engine import Engine

TOLERANCE = {None: 1e-4, torch.bfloat16: 5e-2}
SPLIT_HINT = "set guidance.split_batch to false if samples interact in this network, "


def plain_gradients(step: GuidedStep, sample: Sample) -> tuple[Tensor, dict[str, Tensor]]:
    """Input gradient of the first target and d L_total / d parameter, by PyTorch's ordinary double backward.

    No carrier, no executor, no engine: the reference the prepared step is compared with.

    Returns:
        The input gradient [B, ...], at least FP32, and the gradient of every trainable parameter that the loss
        depends on, by its name in the network, in the network's order.

    Raises:
        UserError: an operation of the network has no second derivative, the logits do not depend on the inputs, or
            the loss on no trainable parameter.
    """
    inputs = sample.inputs.detach().requires_grad_()
    options = step.options
    # Outside the try: what fails here is no matter of derivatives.
    with twice_differentiable_attention():
        logits, own = run_network(step.network, inputs, step.autocast_dtype)
    try:
        input_gradient = gradient_of(logits.gather(1, sample.targets[:, :1]).sum(), inputs, create_graph=False)
        loss = sum(own.values(), classification_loss(logits, sample, step.class_weights))
        if is_guided(sample, options.alpha):
            loss = loss + options.alpha * guidance_loss(logits, inputs, sample, options)
            refuse_first_order_operations(loss)
        trainable = {name: p for name, p in step.network.named_parameters() if p.requires_grad}
        found = torch.autograd.grad(loss, list(trainable.values()), allow_unused=True) if trainable else ()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise not_twice_differentiable(str(error).partition("\n")[0]) from None
    gradients = {name: gradient for name, gradient in zip(trainable, found, strict=True) if gradient is not None}
    if not gradients:
        raise UserError("model: the loss depends on no trainable parameter, so there is nothing to train")
    return input_gradient, gradients


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """|| found - expected || / || expected ||; 0 where both vanish, infinite where either is not finite."""
    scale = float(expected.norm())
    difference = float((found.to(expected.device) - expected).norm())
    # Not NaN, which no comparison and no maximum would notice.
    if not (math.isfinite(scale) and math.isfinite(difference)):
        return math.inf
    return difference / scale if scale > 0 else difference


def self_check(engine: Engine, step: GuidedStep, reference: GuidedStep, sample: Sample, key: tuple[int, ...]) -> None:
    """Compares the prepared step with `reference`, an unwrapped copy of it. All processes must call it.

    Leaves parameters, buffers and gradients as they were.

    Raises:
        UserError: they differ, so the engine (or its settings) would train something else; or `plain_gradients`
            refuses the network, on any process.
    """
    buffers = [buffer.clone() for buffer in step.network.buffers()]
    reference.train()
    seed_everything(*key)
    untouched = random_state(sample.inputs.device)
    problem = ""
    try:
        input_expected, expected = plain_gradients(reference, sample)
    except UserError as error:
        problem = str(error)
    # The reference takes the batch as one: where it drew random numbers, a step in two parts would draw others.
    drew = random_state(sample.inputs.device) != untouched
    problems = [text for text in engine.gather(problem) if text]
    if problems:
        raise UserError(problems[0])
    name = next(iter(expected))  # the first parameter: behind the whole network's derivatives
    gradient_expected = engine.mean(expected[name])
    step.train()
    engine.prepared.train()
    seed_everything(*key)
    options, split = step.options, step.options.split_batch and not drew
    step.options = replace(options, split_batch=split)
    gradient_found = engine.gradient_of(sample, name)
    step.options = options
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
            f"something else: check its settings (clipping, precision), {SPLIT_HINT if split else ''}or disable "
            "train.self_check to go on"
        )


def random_state(device: torch.device) -> bytes:
    """State of the generators that a network on `device` draws from."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return b"".join(state.numpy().tobytes() for state in states)


def unwrapped_copy(step: GuidedStep) -> GuidedStep:
    """A copy taken before the engine prepares the step."""
    return copy.deepcopy(step)
