"""What a step predicts without training: logits, input gradients, score maps."""

from __future__ import annotations

import pytest
import timm
import torch
from networks import CLASSES, random_sample, small_cnn

from provscale.errors import UserError
from provscale.guidance.step import GuidedStep

ALPHA = 0.5


# ---- predictions -------------------------------------------------------------------------------------------------
def test_predictions_of_a_cnn() -> None:
    """logits: the network's. input_gradient: one sample's logit at a time. score_map: sum over channels of the class's
    weight times the last features, by hand (Zhou et al., CVPR 2016)."""
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=CLASSES).eval()
    sample = random_sample(2, size=64, batch=3)
    step = GuidedStep(network, ALPHA)
    outputs = step(sample, outputs=frozenset({"logits", "input_gradient", "score_map"}))
    assert set(outputs) == {"logits", "input_gradient", "score_map"}
    assert not any(output.requires_grad for output in outputs.values())
    with torch.no_grad():
        torch.testing.assert_close(outputs["logits"], network(sample.inputs))
        features = network.forward_features(sample.inputs)
    assert outputs["score_map"].shape == (3, *features.shape[2:])
    assert outputs["input_gradient"].shape == sample.inputs.shape
    for row in range(3):
        target = int(sample.targets[row, 0])
        weight = network.get_classifier().weight[target]
        by_hand = sum(weight[channel] * features[row, channel] for channel in range(len(weight)))
        torch.testing.assert_close(outputs["score_map"][row], by_hand, rtol=1e-4, atol=1e-5)
        # The class's logit is the map's mean plus the bias, by linearity of pooling and classifier.
        logit = outputs["score_map"][row].mean() + network.get_classifier().bias[target]
        torch.testing.assert_close(outputs["logits"][row, target], logit, rtol=1e-4, atol=1e-5)
        image = sample.inputs[row : row + 1].clone().requires_grad_()
        (expected,) = torch.autograd.grad(network(image)[0, target], image)
        torch.testing.assert_close(outputs["input_gradient"][row], expected[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("wanted", [set(), {"logits"}, {"input_gradient"}])
def test_predictions_leave_no_gradient_behind(wanted: set[str]) -> None:
    """Also under no_grad, as evaluation loops run."""
    network, sample = small_cnn().eval(), random_sample(2)
    with torch.no_grad():
        outputs = GuidedStep(network, ALPHA)(sample, outputs=frozenset(wanted))
    assert set(outputs) == wanted | {"logits"}
    assert torch.equal(outputs["logits"], network(sample.inputs).detach())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert sample.inputs.grad is None


def test_unknown_predictions_are_refused() -> None:
    with pytest.raises(UserError, match="unknown name 'score_maps', did you mean 'score_map'"):
        GuidedStep(small_cnn(), ALPHA)(random_sample(1), outputs=frozenset({"logits", "score_maps"}))


def test_predictions_in_bfloat16_are_float32() -> None:
    network = timm.create_model("test_resnet", num_classes=CLASSES).eval()
    step = GuidedStep(network, ALPHA, precision="bf16")
    outputs = step(random_sample(2, 64), outputs=frozenset({"logits", "input_gradient", "score_map"}))
    assert {output.dtype for output in outputs.values()} == {torch.float32}


def test_score_maps_need_features() -> None:
    with pytest.raises(UserError, match="class activation maps"):
        GuidedStep(small_cnn(), ALPHA)(random_sample(1), outputs=frozenset({"score_map"}))
