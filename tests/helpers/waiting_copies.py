"""Notes every copy to a device for which the host would wait, on tensors of the device `meta`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FACTORIES = (torch.tensor, torch.as_tensor, torch.asarray)


class Copies(TorchDispatchMode):
    """Operations that take a CPU tensor with dimensions and give one on `meta`: copies, which may be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.awaited: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        there = any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in tree_leaves(result))
        here = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and not leaf.is_meta]
        if there and any(leaf.dim() for leaf in here) and not (kwargs or {}).get("non_blocking"):
            self.awaited.append(str(function))
        return result


class Watch(TorchFunctionMode):
    """Notes every copy to `meta` for which the host would wait on a GPU.

    Making a tensor of Python numbers there is one, and the dispatcher does not see it.
    """

    def __enter__(self) -> Watch:
        self.copies = Copies()
        self.copies.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.copies.__exit__(*error)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in FACTORIES and result.is_meta:
            self.copies.awaited.append(function.__name__)
        return result
