"""Arithmetic in which two ways to compute the same gradient differ by rounding's least: for comparisons, not speed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from provscale.guidance.step import GuidedStep

BATCH_NORM = inspect.signature(F.batch_norm)


@contextmanager
def changed(step: GuidedStep, **attributes: Any) -> Iterator[None]:
    """The step with other attributes, for a while."""
    before = {name: getattr(step, name) for name in attributes}
    for name, value in attributes.items():
        setattr(step, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(step, name, value)


@contextmanager
def exact_arithmetic(*steps: GuidedStep) -> Iterator[None]:
    """FP32 without TF32, cuDNN's deterministic kernels and PyTorch's own BatchNorm: what differs is not rounding."""
    cudnn = torch.backends.cudnn
    precision = torch.get_float32_matmul_precision()
    with ExitStack() as stack:
        stack.callback(torch.set_float32_matmul_precision, precision)
        torch.set_float32_matmul_precision("highest")
        stack.enter_context(cudnn.flags(cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False))
        stack.enter_context(NativeBatchNorm())
        for step in steps:
            stack.enter_context(changed(step, autocast_dtype=None))
        yield


class NativeBatchNorm(TorchFunctionMode):
    """Inside this context train-mode BatchNorm never runs cuDNN's kernels, whose statistics are rounded otherwise."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is not F.batch_norm:
            return func(*args, **(kwargs or {}))
        bound = BATCH_NORM.bind(*args, **(kwargs or {}))
        bound.apply_defaults()
        given = bound.arguments
        if not given["training"]:
            return func(*args, **(kwargs or {}))
        return torch.native_batch_norm(
            given["input"], given["weight"], given["bias"], given["running_mean"], given["running_var"],
            given["training"], given["momentum"], given["eps"],
        )[0]  # fmt: skip
