"""Networks that cannot be differentiated twice, and the sentence that refuses them."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction

from provscale.errors import UserError


def not_twice_differentiable(reason: str) -> UserError:
    """The error to raise for a network with an operation that has no second derivative."""
    return UserError(
        f"model: the network cannot be differentiated twice ({reason[:200]}); replace that operation by "
        "differentiable ones, or train the baseline with guidance.alpha 0"
    )


def refuse_first_order_operations(loss: Tensor) -> None:
    """Finds operations whose second derivative `torch.autograd.grad` would leave out silently.

    PyTorch lets the first derivative of a custom function marked `once_differentiable` end in a node that raises
    an error. That node leads to no parameter, so `autograd.grad(loss, parameters)`, which visits only what leads
    to them, never meets it and returns gradients without that part. Hence this walk over the whole graph, about
    as long as a first-order step's launches: once is enough.

    Args:
        loss: scalar computed from input gradients that were made with `create_graph=True`.

    Raises:
        UserError: such an operation is in the graph; names the network's custom functions.
    """
    seen: set[Any] = set()
    pending: list[Any] = [loss.grad_fn]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        pending.extend(following for following, _ in node.next_functions)
    if any(node.name() == "torch::autograd::Error" for node in seen):
        custom = sorted({type(node).__name__ for node in seen if isinstance(node, BackwardCFunction)})
        raise not_twice_differentiable(
            f"a function marked once_differentiable, one of: {', '.join(custom) or 'unnamed'}"
        )
