"""Instance scores: class scores of the parts of an input, such as the skeletons of a clip."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from provscale.errors import UserError


def logits_and_instance_scores(network: Any, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [B, K] and each instance's logits [B, ..., K], by the network's method of the same name.

    Raises:
        UserError: the network has no such method.
    """
    own = getattr(network, "logits_and_instance_scores", None)
    if own is None:
        raise UserError(
            f"evaluation.metrics: action tubes need a score of each skeleton, but {type(network).__name__} has no "
            "method logits_and_instance_scores; use model.name skp, or remove 'video_ap'"
        )
    return own(inputs)
