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

from provscale.second_derivatives.attention import attention
from provscale.second_derivatives.batch_norm import batch_norm
from provscale.second_derivatives.convolution import FUNCTIONS, convolution
from provscale.second_derivatives.gelu import gelu
from provscale.second_derivatives.layer_norm import layer_norm


def fast_second_derivatives(network: nn.Module) -> AbstractContextManager[Any]:
    """`FastSecondDerivatives` where it pays: it costs a Python call an operation; one patch embedding saves less."""
    modules = list(network.modules())
    if any(getattr(module, "grad_checkpointing", False) for module in modules):
        # PyTorch's checkpointing runs a block again outside this context, and must then save the same tensors.
        return nullcontext()
    normalises = any(isinstance(module, (_BatchNorm, nn.LayerNorm)) for module in modules)
    pays = normalises or sum(isinstance(module, _ConvNd) for module in modules) > 1
    return FastSecondDerivatives() if pays else nullcontext()


class FastSecondDerivatives(TorchFunctionMode):
    """Inside this context train-mode BatchNorm, LayerNorm, convolutions, GELU and attention are the package's own.

    The second derivative is the same number from fewer passes (`batch_norm.py`, `layer_norm.py`, `convolution.py`,
    `gelu.py`, `attention.py`; docs/performance.md has the measurements). Values agree with PyTorch's up to rounding:
    BatchNorm uses PyTorch's native kernels, not cuDNN's, and attention scales its queries only.
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
        if func is F.gelu:
            return gelu(*args, **kwargs)
        if func is F.layer_norm:
            return layer_norm(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return attention(*args, **kwargs)
        if func in FUNCTIONS:
            outputs = convolution(FUNCTIONS[func], *args, **kwargs)
            if outputs is not None:
                return outputs
        return func(*args, **kwargs)
