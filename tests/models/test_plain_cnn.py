"""The small network of the embedded tasks: shapes, layers, class activation maps, options that are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import random_sample
from torch import nn

from provscale.config import ModelConfig
from provscale.errors import UserError
from provscale.guidance.step import GuidedStep
from provscale.models import build_model


def built(**options: Any) -> nn.Module:
    return build_model(ModelConfig(name="plain_cnn", options=options), 5).network


def test_layers_are_those_asked_for() -> None:
    plain, normed = built(norm="none", widths=[4, 6], strides=[2, 2]), built()
    assert [type(layer).__name__ for layer in plain.features] == ["Conv2d", "ReLU"] * 2
    assert [type(layer).__name__ for layer in normed.features] == ["Conv2d", "BatchNorm2d", "ReLU"] * 5
    # 3x3 weights and a bias, twice; the classifier.
    assert sum(parameter.numel() for parameter in plain.parameters()) == (27 + 1) * 4 + (36 + 1) * 6 + (6 + 1) * 5
    assert all(layer.bias is None for layer in normed.features if isinstance(layer, nn.Conv2d))
    assert plain.forward_features(torch.randn(2, 3, 32, 24)).shape == (2, 6, 8, 6)
    assert normed(torch.randn(2, 3, 32, 24)).shape == (2, 5)


def test_the_mean_of_the_activation_map_is_the_logit() -> None:
    """Zhou et al., CVPR 2016: pooling and the linear layer commute, so the map's mean and the bias give the logit."""
    network = built().eval()
    step = GuidedStep(network, 0.0)
    sample = random_sample(1, 32)
    outputs = step(sample, outputs=frozenset({"logits", "score_map"}))
    with torch.no_grad():
        maps = torch.einsum("kc,bchw->bkhw", network.classifier.weight, network.forward_features(sample.inputs))
        torch.testing.assert_close(maps.mean(dim=(2, 3)) + network.classifier.bias, outputs["logits"])
    assert outputs["score_map"].shape[0] == len(sample)


@pytest.mark.parametrize(
    "options", [{"widths": [8]}, {"widths": [], "strides": []}, {"strides": [1, 2, 0, 2, 1]}, {"norm": "layer"}]
)
def test_options_that_make_no_network(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"model\.options"):
        built(**options)
