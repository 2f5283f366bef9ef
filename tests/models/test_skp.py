"""SKP: what pooling promises (order does not matter, padding does not exist), second derivative, pooling switching.

Where a test takes `missing`, it holds for both ways of keeping missing keypoints out.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from provscale.errors import UserError
from provscale.guidance.step import GuidedStep
from provscale.models import StructuredKeypointPooling
from provscale.predictions import instance_scores
from provscale.sample import Sample
from provscale.second_derivatives.set_maximum import SetMaximum

B, P, F, V, K = 3, 4, 5, 6, 7


def clips(seed: int = 0, missing: float = 0.2, persons: int = P) -> Tensor:
    """Skeletons [B, P, F, 3V] in which some keypoints, and person P - 1 of clip 0, are missing."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(B, persons, F, V, 3, generator=generator, dtype=torch.float64)
    points[..., 2] = points[..., 2].abs() + 0.1
    points *= torch.rand(B, persons, F, V, 1, generator=generator) >= missing
    points[0, -1] = 0
    return points.flatten(3)


def network(**options: object) -> StructuredKeypointPooling:
    torch.manual_seed(0)
    built = StructuredKeypointPooling(K, keypoints=V, width=8, **options).double()  # type: ignore[arg-type]
    # Statistics that are not those of a new network, or a leak of padding into them would not show.
    for module in built.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.momentum = 0.5
    built.train()(clips(1))
    return built


@pytest.fixture(params=["packed", "masked"])
def missing(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("training", [True, False])
def test_order_of_persons_and_clips_does_not_matter(training: bool, missing: str) -> None:
    """Pooling is a maximum over sets, so logits are invariant; skeletons' scores move with their skeletons."""
    model = network(missing=missing).train(training)
    inputs, order = clips(), torch.tensor([2, 0, 3, 1])
    logits, scores = model.logits_and_instance_scores(inputs)
    moved, moved_scores = model.logits_and_instance_scores(inputs[:, order])
    torch.testing.assert_close(moved, logits)
    torch.testing.assert_close(moved_scores, scores[:, order])
    torch.testing.assert_close(model(inputs.flip(0)), logits.flip(0))


@pytest.mark.parametrize("training", [True, False])
def test_order_of_points_does_not_matter(monkeypatch: pytest.MonkeyPatch, training: bool, missing: str) -> None:
    """Points carry their time and keypoint as features: their places in the list are no information."""
    model = network(missing=missing).train(training)
    logits = model(clips())
    features = model.points

    def shuffled(inputs: Tensor) -> tuple[Tensor, Tensor]:
        points, valid = features(inputs)
        order = torch.randperm(V)
        skeletons = torch.randperm(P * F)
        return points[:, skeletons][:, :, order], valid[:, skeletons][:, :, order]

    monkeypatch.setattr(model, "points", shuffled)
    torch.testing.assert_close(model(clips()), logits)


def test_padding_changes_neither_logits_nor_statistics(missing: str) -> None:
    """More empty slots, and garbage where the confidence is 0, give the same logits, statistics and gradients."""
    inputs = clips()
    padded = torch.cat([inputs, torch.zeros(B, 3, F, 3 * V)], dim=1)
    points = padded.unflatten(3, (V, 3))
    points[..., :2] += 100 * (points[..., 2:] == 0)
    plain, other = network(), network(missing=missing)
    torch.testing.assert_close(other(padded), plain(inputs))
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, msg=name)
    padded.requires_grad_()
    other(padded).sum().backward()
    assert padded.grad is not None
    assert (padded.grad.unflatten(3, (V, 3))[points[..., 2] == 0] == 0).all()
    assert padded.grad.abs().sum() > 0


def test_statistics_are_those_of_the_points_that_are_there(missing: str) -> None:
    """The first BatchNorm's running mean equals a plain mean over points with confidence > 0, computed here."""
    torch.manual_seed(0)
    model = StructuredKeypointPooling(K, keypoints=V, width=8, missing=missing).double()
    inputs = clips()
    model(inputs)
    rows = []
    for clip in inputs:
        for person in clip:
            for frame, skeleton in enumerate(person):
                for keypoint, (x, y, confidence) in enumerate(skeleton.view(V, 3).tolist()):
                    if confidence > 0:
                        rows.append([x, y, 2 * frame / (F - 1) - 1, confidence, 2 * keypoint / (V - 1) - 1])
    linear, norm = model.point_layers[0][0], model.point_layers[0][1]
    mean = (torch.tensor(rows, dtype=torch.float64) @ linear.weight.T).mean(dim=0)
    torch.testing.assert_close(norm.running_mean, 0.1 * mean)


def test_widths_double_at_each_concatenation() -> None:
    """D, 2D, 4D of the paper: 256, 512, 1024."""
    model = StructuredKeypointPooling(24)
    widths = {module.num_features for module in model.modules() if isinstance(module, torch.nn.BatchNorm1d)}
    assert widths == {256, 512, 1024, 2048}  # block outputs, and hidden layers of expansion 2
    assert model.classifier[-1].in_features == 1024


def test_clip_score_is_the_classifier_on_the_maximum_over_skeletons(missing: str) -> None:
    """Pooling switching leaves out the last maximum only: a clip with one skeleton has that skeleton's logits."""
    model = network(missing=missing).eval()
    alone = torch.zeros(1, P, F, 3 * V, dtype=torch.float64)
    alone[0, 2, 3] = clips()[1, 0, 0]
    found = instance_scores(model, Sample.real(alone, torch.tensor([0])))
    logits, scores = found["logits"], found["instance_scores"]
    torch.testing.assert_close(scores[0, 2, 3], logits[0])
    assert scores.shape == (1, P, F, K)
    assert (scores != 0).any(dim=3).nonzero().tolist() == [[0, 2, 3]]


def test_empty_clip_is_finite_and_changes_no_other(missing: str) -> None:
    model = network(missing=missing).eval()
    inputs = clips()
    inputs[1] = 0
    logits = model(inputs)
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[[0, 2]], model(inputs[[0, 2]]))


def test_second_derivative_equals_finite_differences(missing: str) -> None:
    """d L_total / d weight of the guided step, against central differences of the loss in float64."""
    inputs = clips()
    sample = Sample.real(inputs, torch.tensor([0, 1, 2]))
    sample.is_synthetic[:] = True
    sample.guided = True
    sample.provenance_mask = (torch.rand(B, P, F, 3 * V) > 0.5).double()
    step = GuidedStep(network(missing=missing), alpha=0.5).train()
    step(sample)["loss"].backward()
    weight = step.network.point_layers[0][0].weight
    assert weight.grad is not None
    for place in [(0, 0), (3, 1), (7, 4)]:
        values = []
        for shift in (1e-6, -1e-6):
            with torch.no_grad():
                weight[place] += shift
            values.append(float(step(sample)["loss"].detach()))
            with torch.no_grad():
                weight[place] -= shift
        assert float(weight.grad[place]) == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4, abs=1e-7)


def test_set_maximum_is_amax_with_both_derivatives() -> None:
    """Against PyTorch's own, with values that are equal, which share the gradient, and one dimension of one element."""
    torch.manual_seed(0)
    values = torch.randint(0, 3, (4, 5, 1, 3)).double()
    for dim in range(4):
        found = []
        for function in (torch.amax, SetMaximum.apply):
            leaf = values.clone().requires_grad_()
            largest = function(leaf, dim)
            (first,) = torch.autograd.grad(largest.pow(3).sum(), leaf, create_graph=True)
            found.append([largest, first, *torch.autograd.grad(first.pow(2).sum(), leaf)])
        for mine, theirs in zip(found[1], found[0], strict=True):
            torch.testing.assert_close(mine, theirs)


def test_mistakes_are_one_line() -> None:
    with pytest.raises(UserError, match=r"skp got inputs of shape \[2, 3, 8, 8\]"):
        network()(torch.zeros(2, 3, 8, 8, dtype=torch.float64))
    with pytest.raises(UserError, match="repeats: is"):
        StructuredKeypointPooling(K, repeats=(1, 1))
    with pytest.raises(UserError, match="width 0"):
        StructuredKeypointPooling(K, width=0)
    with pytest.raises(UserError, match="missing: is 'drop', must be one of: auto, packed, masked"):
        StructuredKeypointPooling(K, missing="drop")
    with pytest.raises(UserError, match="Linear has no method logits_and_instance_scores"):
        instance_scores(torch.nn.Linear(1, 1), Sample.real(torch.zeros(1, 1), torch.tensor([0])))


@pytest.mark.parametrize(("repeats", "millions"), [((1, 1, 1), 5.54), ((13, 13, 13), 71.73)])
def test_size_of_our_setting_and_of_the_authors(repeats: tuple[int, int, int], millions: float) -> None:
    """The table in docs/skeletons.md, counted by hand: a block of width C has twice C x 2C weights, and a scale and a
    shift of each of its 3C normalised channels."""
    blocks = sum(count * (4 * c * c + 6 * c) for count, c in zip(repeats, (256, 512, 1024), strict=True))
    expected = blocks + (5 * 256 + 2 * 256) + 2 * 1024 + (1024 + 1) * 24
    with torch.device("meta"):
        built = StructuredKeypointPooling(24, repeats=repeats)
    assert sum(parameter.numel() for parameter in built.parameters()) == expected
    assert round(expected / 1e6, 2) == millions
