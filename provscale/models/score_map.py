"""Score maps: where a network sees a class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from provscale.errors import UserError


def logits_and_score_map(network: Any, inputs: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [B, K] and the class activation map [B, h, w] of `classes` [B].

    A network with a method `logits_and_score_map(inputs, classes)` answers for itself. For a timm network of
    convolutions, global average pooling and one linear layer, the map is that layer's weight of the class, summed
    over the channels of the last feature map (Zhou et al., CVPR 2016).

    Raises:
        UserError: the network has neither.
    """
    own = getattr(network, "logits_and_score_map", None)
    if own is not None:
        return own(inputs, classes)
    classifier = network.get_classifier() if hasattr(network, "get_classifier") else None
    if not (isinstance(classifier, nn.Linear) and hasattr(network, "forward_features")):
        raise UserError(
            f"evaluation.metrics: localisation needs class activation maps, but {type(network).__name__} has neither "
            "a method logits_and_score_map nor a linear classifier on feature maps; remove 'maxboxacc'"
        )
    features = network.forward_features(inputs)
    if features.dim() != 4:
        raise UserError(
            f"evaluation.metrics: {type(network).__name__} gives features of shape {tuple(features.shape)}, class "
            "activation maps need [B, C, h, w]; remove 'maxboxacc' or add a method logits_and_score_map"
        )
    logits = network.forward_head(features)
    score_map = torch.einsum("bchw,bc->bhw", features, classifier.weight[classes].to(features.dtype))
    return logits, score_map
