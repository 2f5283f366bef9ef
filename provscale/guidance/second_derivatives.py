"""Replaces operations whose second derivative PyTorch computes slowly by equal ones that compute it fast."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from provscale.guidance.batch_norm import batch_norm
from provscale.guidance.convolution import FUNCTIONS, convolution


def fast_second_derivatives(network: nn.Module) -> AbstractContextManager[Any]:
    """`FastSecondDerivatives` where it pays: it costs a Python call an operation; one patch embedding saves less."""
    modules = list(network.modules())
    if any(getattr(module, "grad_checkpointing", False) for module in modules):
        # PyTorch's checkpointing runs a block again outside this context, and must then save the same tensors.
        return nullcontext()
    pays = sum(isinstance(module, _ConvNd) for module in modules) > 1
    return FastSecondDerivatives() if pays or any(isinstance(m, _BatchNorm) for m in modules) else nullcontext()


class FastSecondDerivatives(TorchFunctionMode):
    """Inside this context train-mode BatchNorm and convolutions of a network are the package's own.

    The second derivative is the same number from fewer passes (`batch_norm.py`, `convolution.py`; docs/performance.md
    has the measurements). Convolutions keep their kernels; BatchNorm uses PyTorch's native ones, which on a GPU may
    differ from cuDNN's by rounding.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            return batch_norm(*args, **kwargs)
        if func in FUNCTIONS:
            outputs = convolution(FUNCTIONS[func], *args, **kwargs)
            if outputs is not None:
                return outputs
        return func(*args, **kwargs)
