"""PoseC3D and ST-GCN on skeletons: against MMAction2's own transforms and recognizers, and under guidance."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from provscale import openmmlab
from provscale.errors import UserError
from provscale.guidance.step import GuidedStep
from provscale.models import MODELS
from provscale.models.openmmlab import KEYPOINTS, PoseC3D, heatmap_volume
from provscale.sample import Sample

needs_openmmlab = pytest.mark.skipif(
    bool(openmmlab.missing_modules()), reason="OpenMMLab is not installed; run tools/install_openmmlab.sh"
)
CLASSES, ALPHA = 3, 0.3
SMALL: dict[str, dict[str, Any]] = {
    "stgcn": {"num_stages": 3, "base_channels": 4, "inflate_stages": [2], "down_stages": [3]},
    "posec3d": {"heatmap_size": 16, "base_channels": 4, "stage_blocks": (1, 1, 1), "dropout": 0.0},
}


def skeletons(batch: int = 2, persons: int = 2, frames: int = 4) -> Tensor:
    """[B, P, F, 51] inside the frame; some keypoints and the last clip's last person are missing (all zero)."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(batch, persons, frames, KEYPOINTS, 3, generator=generator) * 1.6 - 0.8
    points[..., 2] = points[..., 2].abs() + 0.1
    points[:, 0, 1, 3] = 0
    points[-1, -1] = 0
    return points.flatten(3)


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name](num_classes=CLASSES, **SMALL[name])


def test_names_are_known_without_openmmlab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openmmlab, "MODULES", ("mmaction_that_is_not_there",))
    for name in SMALL:
        with pytest.raises(
            UserError, match=rf"model\.name: {name}: needs OpenMMLab .* run bash tools/install_openmmlab"
        ):
            build(name)


def test_importing_the_models_does_not_import_openmmlab() -> None:
    names = set(openmmlab.MODULES)
    code = f"import sys, provscale.models.openmmlab; sys.exit(bool({names} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


# heatmaps; these need no OpenMMLab


def test_heatmaps_have_right_first_and_second_derivatives() -> None:
    generator = torch.Generator().manual_seed(1)
    cells = (torch.rand(1, 2, 1, 2, 2, generator=generator, dtype=torch.float64) * 5 + 0.5).requires_grad_()
    confidence = torch.rand(1, 2, 1, 2, generator=generator, dtype=torch.float64).add(0.2).requires_grad_()

    def volume(cells: Tensor, confidence: Tensor) -> Tensor:
        return heatmap_volume(cells, confidence, 6, 0.6)

    assert torch.autograd.gradcheck(volume, (cells, confidence))
    assert torch.autograd.gradgradcheck(volume, (cells, confidence))


def test_heatmap_of_one_keypoint() -> None:
    cells = torch.tensor([3.0, 1.0]).expand(1, 1, 1, 1, 2)
    volume = heatmap_volume(cells, torch.full((1, 1, 1, 1), 0.8), 8, 0.6)
    assert volume.shape == (1, 1, 1, 8, 8)
    # exp(-d^2 / (2 sigma^2)); 3 sigma = 1.8 cells, so int(3 - 1.8) = 1 to int(3 + 1.8) = 4.
    row = 0.8 * np.exp(-((np.arange(8) - 3.0) ** 2) / 0.72) * [0, 1, 1, 1, 1, 0, 0, 0]
    np.testing.assert_allclose(volume[0, 0, 0, 1], row, rtol=1e-5)
    np.testing.assert_allclose(volume[0, 0, 0, 2], row * np.exp(-1 / 0.72), rtol=1e-5)


# with OpenMMLab


@needs_openmmlab
@pytest.mark.parametrize("spread", [1.0, 0.01])
def test_volume_is_that_of_mmaction2(monkeypatch: pytest.MonkeyPatch, spread: float) -> None:
    """PoseCompact, Resize and GeneratePoseTarget of MMAction2, clip by clip; a narrow clip stays uncropped."""
    from mmaction.datasets.transforms import GeneratePoseTarget, PoseCompact, Resize

    monkeypatch.setattr(np, "Inf", np.inf, raising=False)  # gone in numpy 2
    inputs = skeletons() * torch.tensor([spread, spread, 1.0]).repeat(KEYPOINTS)
    frame, size = (240, 320), 24
    network = MODELS["posec3d"](num_classes=2, **SMALL["posec3d"] | {"heatmap_size": size, "frame_size": frame})
    assert isinstance(network, PoseC3D)
    volume = network.volume(inputs)
    for row, clip in enumerate(inputs.unflatten(3, (KEYPOINTS, 3)).double().numpy()):
        there = clip[..., 2:] > 0
        results = {
            "keypoint": (clip[..., :2] + 1) / 2 * [frame[1], frame[0]] * there,
            "keypoint_score": clip[..., 2],
            "img_shape": frame,
        }
        results = PoseCompact(hw_ratio=1.0, allow_imgpad=True).transform(results)
        assert (results["img_shape"] == frame) == (spread < 1)
        results = Resize(scale=(size, size), keep_ratio=False).transform(results)
        expected = GeneratePoseTarget(sigma=0.6).transform(results)["imgs"]  # [F, V, H, W]
        assert expected.max() > 0.3
        np.testing.assert_allclose(volume[row].transpose(0, 1), expected, atol=1e-4)


@needs_openmmlab
@pytest.mark.parametrize("name", SMALL)
def test_logits_are_those_of_mmactions_recognizer(name: str) -> None:
    from mmaction.registry import MODELS as PARTS
    from mmengine.registry import DefaultScope

    network = build(name).eval()
    recognizer = {"stgcn": "RecognizerGCN", "posec3d": "Recognizer3D"}[name]
    head = {
        "type": type(network.cls_head).__name__,
        "num_classes": CLASSES,
        "in_channels": network.cls_head.in_channels,
    }
    options = {key: value for key, value in SMALL[name].items() if key not in ("heatmap_size", "dropout")}
    backbone = {
        "stgcn": {"type": "STGCN", "graph_cfg": {"layout": "coco", "mode": "stgcn_spatial"}},
        "posec3d": {
            "type": "ResNet3dSlowOnly", "depth": 50, "in_channels": 17, "num_stages": 3, "out_indices": (2,),
            "conv1_stride_s": 1, "pool1_stride_s": 1, "inflate": (0, 1, 1), "spatial_strides": (2, 2, 2),
            "temporal_strides": (1, 1, 2), "dilations": (1, 1, 1),
        },
    }[name]  # fmt: skip
    with DefaultScope.overwrite_default_scope("mmaction"):
        theirs = PARTS.build({"type": recognizer, "backbone": backbone | options, "cls_head": head}).eval()
    theirs.load_state_dict(network.state_dict())  # the names of a checkpoint
    inputs = skeletons()
    seen = inputs.unflatten(3, (KEYPOINTS, 3)) if name == "stgcn" else network.volume(inputs)
    features, _ = theirs.extract_feat(seen[:, None], stage="backbone")
    torch.testing.assert_close(network(inputs), theirs.cls_head(features))


@needs_openmmlab
@pytest.mark.parametrize("name", SMALL)
def test_input_gradient_is_the_slope_of_the_logit(name: str) -> None:
    network = build(name).double().eval()
    inputs = skeletons().double().requires_grad_()
    (gradient,) = torch.autograd.grad(network(inputs)[0, 1], inputs)
    assert (gradient[1] == 0).all()
    directions = torch.randn(5, *inputs.shape[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    directions = directions * (inputs[0].unflatten(2, (KEYPOINTS, 3))[..., 2:] > 0).expand(-1, -1, -1, 3).flatten(2)
    step = 1e-6
    for direction in directions:
        move = torch.stack([direction, torch.zeros_like(direction)]) * step
        with torch.no_grad():
            slope = (network(inputs + move)[0, 1] - network(inputs - move)[0, 1]) / (2 * step)
        assert slope.item() == pytest.approx((gradient[0] * direction).sum().item(), rel=1e-3, abs=1e-8)


@needs_openmmlab
@pytest.mark.parametrize("name", SMALL)
def test_guided_step_is_plain_double_backward(name: str) -> None:
    network = build(name)
    sample = Sample.real(skeletons(4), torch.tensor([0, 1, 2, 0]))
    sample.targets = torch.tensor([[0, 1], [1, 2], [2, 0], [0, 2]])
    sample.mixing_weight = torch.tensor([0.5, 0.3, 0.8, 1.0])
    sample.provenance_mask = (torch.rand(sample.inputs.shape, generator=torch.Generator().manual_seed(2)) < 0.5).float()
    sample.is_synthetic[:3] = True
    sample.guided = True
    result = GuidedStep(network, ALPHA)(sample)
    result["loss"].backward()
    found = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]

    # METHOD: L_cls + alpha * || (1 - M) . grad f_A + M . grad f_B ||^2, by hand.
    inputs = sample.inputs.clone().requires_grad_()
    logits = network(inputs)
    rows = torch.arange(3)
    grad_a, grad_b = (
        torch.autograd.grad(logits[rows, sample.targets[:3, k]].sum(), inputs, create_graph=True)[0] for k in (0, 1)
    )
    mask = sample.provenance_mask
    guidance = ((1 - mask) * grad_a + mask * grad_b)[:3].square().sum() / 4
    both = torch.stack([F.cross_entropy(logits, sample.targets[:, k], reduction="none") for k in (0, 1)], dim=1)
    share = torch.stack([sample.mixing_weight, 1 - sample.mixing_weight], dim=1)
    loss = (both * share).sum(dim=1).mean() + ALPHA * guidance
    used = [parameter for parameter in network.parameters() if parameter.requires_grad]
    expected = [g for g in torch.autograd.grad(loss, used, allow_unused=True) if g is not None]

    assert guidance.item() > 1e-6
    assert result["loss_guidance"].item() == pytest.approx(guidance.item(), rel=1e-4)
    assert result["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@needs_openmmlab
def test_missing_keypoints_have_no_gradient_in_heatmaps() -> None:
    network = build("posec3d").eval()
    inputs = skeletons().requires_grad_()
    (gradient,) = torch.autograd.grad(network(inputs).sum(), inputs)
    missing = inputs.unflatten(3, (KEYPOINTS, 3))[..., 2] == 0
    gradient = gradient.unflatten(3, (KEYPOINTS, 3))
    assert missing.any()
    assert (gradient[missing] == 0).all()
    assert (gradient[~missing] != 0).any(dim=0).all()  # x, y and confidence


@needs_openmmlab
@pytest.mark.parametrize("name", SMALL)
def test_instance_scores(name: str) -> None:
    network = build(name).eval()
    inputs = skeletons()
    logits, scores = network.logits_and_instance_scores(inputs)
    assert scores.shape == (2, 2, 4, CLASSES)
    torch.testing.assert_close(logits, network(inputs))
    assert (scores[1, 1] == 0).all()  # the missing person
    alone = network(inputs[:, :1])
    torch.testing.assert_close(scores[:, 0], alone[:, None].expand(-1, 4, -1))


@needs_openmmlab
@pytest.mark.parametrize("name", SMALL)
def test_wrong_inputs_and_options(name: str) -> None:
    with pytest.raises(UserError, match=rf"{name} got inputs of shape \[2, 3, 8, 8\]; it needs skeletons"):
        build(name)(torch.zeros(2, 3, 8, 8))
    if name == "posec3d":
        with pytest.raises(UserError, match="sigma 0"):
            MODELS[name](num_classes=2, sigma=0)
