"""Checks before the first step: twice differentiable network, and an engine that delivers the right gradients."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from provscale.errors import UserError
from provscale.guidance.exact_arithmetic import changed, exact_arithmetic
from provscale.guidance.executors.eager import EagerExecutor
from provscale.guidance.executors.recording import state_preserved
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

LEAST, MOST = 1e-4, 5e-3
"""Relative differences that always pass, and that an engine may reach at most."""
MARGIN = 4
"""Times the difference that one rounding of the inputs makes; a network's other roundings add to it."""
FEW = 8
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

    The engine first: its eager step against PyTorch's ordinary double backward, on a few samples, in exact arithmetic.
    Then the executor, unless it is eager: on the whole batch, as training runs it, against the eager step.

    Differences up to `LEAST` pass. Beyond, the same step with inputs moved by one rounding shows how far rounding alone
    carries in this network, and up to `MARGIN` times that passes; for the engine up to `MOST` in any case, so that
    a gradient off by 1 % never passes.

    Leaves parameters, buffers and gradients as they were.

    Raises:
        UserError: they differ, so the engine (or its settings) would train something else; or `plain_gradients`
            refuses the network, on any process.
    """
    reference.train()
    step.train()
    engine.prepared.train()
    name = check_engine(engine, step, reference, few_of(sample), key)
    if not isinstance(step.executor, EagerExecutor):
        check_executor(engine, step, sample, name, key)


def check_engine(engine: Engine, step: GuidedStep, reference: GuidedStep, sample: Sample, key: tuple[int, ...]) -> str:
    """Returns the name of the parameter whose gradient was compared."""
    device = sample.inputs.device
    problem = ""
    with exact_arithmetic(step, reference):
        seed_everything(*key)
        untouched = random_state(device)
        try:
            input_expected, gradients = plain_gradients(reference, sample)
        except UserError as error:
            problem = str(error)
        # The reference takes the batch as one: where it drew random numbers, a step in two parts would draw others.
        drew = random_state(device) != untouched
        problems = [text for text in engine.gather(problem) if text]
        if problems:
            raise UserError(problems[0])
        name = next(iter(gradients))  # the first parameter: behind the whole network's derivatives
        split = step.options.split_batch and not drew
        expected = {"input gradient": input_expected, f"gradient of '{name}'": engine.mean(gradients[name])}
        with changed(step, executor=EagerExecutor(), options=replace(step.options, split_batch=split)):
            gradient_found = gradient_of_step(engine, step, sample, name, key)
        with state_preserved(step.network, device):
            seed_everything(*key)
            input_found = engine.predict(sample, frozenset({"input_gradient"}))["input_gradient"]

        def moved() -> list[Tensor]:
            seed_everything(*key)
            input_gradient, gradients = plain_gradients(reference, moved_by_one_rounding(sample, torch.float32))
            return [input_gradient, engine.mean(gradients[name])]

        refuse_unless_alike(
            engine,
            dict(zip(expected, (input_found, gradient_found), strict=True)),
            expected,
            moved,
            MOST,
            f"the engine '{engine.name}' would train something else: check its settings (clipping, precision), "
            + (SPLIT_HINT if split else ""),
        )
    return name


def check_executor(engine: Engine, step: GuidedStep, sample: Sample, name: str, key: tuple[int, ...]) -> None:
    executor = step.options.executor
    found = gradient_of_step(engine, step, sample, name, key)
    with changed(step, executor=EagerExecutor()):
        expected = gradient_of_step(engine, step, sample, name, key)

        def moved() -> list[Tensor]:
            dtype = step.autocast_dtype or torch.float32
            return [gradient_of_step(engine, step, moved_by_one_rounding(sample, dtype), name, key)]

        what = f"gradient of '{name}'"
        refuse_unless_alike(
            engine,
            {what: found},
            {what: expected},
            moved,
            math.inf,
            f"guidance.executor {executor} would train something else: use eager, ",
        )


def refuse_unless_alike(
    engine: Engine,
    found: dict[str, Tensor],
    expected: dict[str, Tensor],
    moved: Callable[[], list[Tensor]],
    most: float,
    hint: str,
) -> None:
    """Raises UserError on all processes where `found` and `expected` differ by more than rounding explains.

    Args:
        moved: computes `expected` anew from inputs moved by one rounding; called by all processes or none.
        most: that is never allowed, whatever rounding explains.
        hint: who is to blame, and what to do.
    """
    differences = {what: relative_difference(found[what], expected[what]) for what in expected}
    worst = max(engine.gather(max(differences.values())))
    allowed = LEAST
    if LEAST < worst < most:
        noise = max(map(relative_difference, moved(), expected.values()))
        allowed = min(max(LEAST, MARGIN * max(engine.gather(noise))), most)
    if not worst <= allowed:
        raise UserError(
            f"self-check: the prepared step's {max(differences, key=lambda what: differences[what])} differs from an "
            f"unwrapped copy's by {worst:.2g} relative (allowed {allowed:.2g}); {hint}or disable train.self_check to "
            "go on"
        )


def gradient_of_step(engine: Engine, step: GuidedStep, sample: Sample, name: str, key: tuple[int, ...]) -> Tensor:
    """`engine.gradient_of`, which leaves buffers and random generators as they were."""
    with state_preserved(step.network, sample.inputs.device):
        seed_everything(*key)
        return engine.gradient_of(sample, name)


def few_of(sample: Sample) -> Sample:
    """Up to `FEW` synthetic samples and as many real ones: memory for a second network's step may not be left."""
    synthetic = sample.is_synthetic.cpu()
    rows = torch.cat([kind.nonzero().squeeze(1)[:FEW] for kind in (synthetic, ~synthetic)])
    return sample if len(rows) == len(sample) else sample[rows]


def moved_by_one_rounding(sample: Sample, dtype: torch.dtype) -> Sample:
    """Inputs times 1 - eps, 1 or 1 + eps of `dtype`, in turn; that of TF32 where convolutions round to it."""
    inputs = sample.inputs
    tf32 = inputs.device.type == "cuda" and torch.backends.cudnn.allow_tf32 and dtype == torch.float32
    eps = 2.0**-10 if tf32 else torch.finfo(dtype).eps
    turn = torch.arange(inputs.numel(), device=inputs.device).view_as(inputs) % 3 - 1
    return replace(sample, inputs=inputs * (1 + eps * turn.to(inputs.dtype)))


def random_state(device: torch.device) -> bytes:
    """State of the generators that a network on `device` draws from."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return b"".join(state.numpy().tobytes() for state in states)


def unwrapped_copy(step: GuidedStep) -> GuidedStep:
    """A copy taken before the engine prepares the step."""
    return copy.deepcopy(step)
