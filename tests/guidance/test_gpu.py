"""What only a CUDA device can show: capture, replay, memory, and equality with eager on the paper's networks.

    python -m pytest -m gpu

Convolutions and matrix products run in full FP32 here (no TF32) and with deterministic algorithms, so that a difference
is an executor's.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import timm
import torch
import torchvision
from test_executors import CLASSES, assert_equal_steps, random_sample, small_network, worst_gradient
from test_skp_executors import clips
from test_skp_executors import network as skp
from torch import nn

from provscale.guidance.self_check import MARGIN, moved_by_one_rounding
from provscale.guidance.step import GuidedStep
from provscale.sample import Sample
from provscale.second_derivatives.recompute import recompute_activations

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
GRAPHS = ("cuda_graph", "cuda_graph_compiled")


@pytest.fixture(autouse=True)
def exact_arithmetic() -> Iterator[None]:
    saved = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = saved


def pair(network: nn.Module, executor: str, **arguments: object) -> tuple[GuidedStep, GuidedStep]:
    """An eager step and one with `executor`, on copies of the network."""
    network = network.cuda().train()
    reference = GuidedStep(copy.deepcopy(network), 0.5, **arguments)  # type: ignore[arg-type]
    return reference, GuidedStep(network, 0.5, executor=executor, **arguments)  # type: ignore[arg-type]


def run(step: GuidedStep, sample: Sample, seed: int) -> None:
    step.zero_grad()
    torch.manual_seed(seed)
    step(sample)["loss"].backward()


def noise_bound(step: GuidedStep, sample: Sample, seed: int) -> float:
    """What the self-check allows an executor: `MARGIN` times the difference that one rounding of the inputs makes."""
    still, moved = copy.deepcopy(step), copy.deepcopy(step)
    run(still, sample, seed)
    run(moved, moved_by_one_rounding(sample, step.autocast_dtype or torch.float32), seed)
    return max(1e-5, MARGIN * worst_gradient(moved, still))


def backbone(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "vgg16":
        features = torchvision.models.vgg16().features
        return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, CLASSES))
    if name == "deit_small_patch16_224":
        return timm.create_model(name, num_classes=CLASSES, img_size=64, drop_path_rate=0.1)
    return timm.create_model(name, num_classes=CLASSES)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("executor", ["compiled", *GRAPHS])
@pytest.mark.parametrize("name", ["vgg16", "deit_small_patch16_224", "resnet50"])
def test_backbones_give_the_eager_numbers(name, executor, soft, precision):
    """A replay runs the eager kernels: 1e-5 relative. A compiler's round otherwise, and what becomes of a rounding is
    the network's matter (ResNet-50 in FP32: 1e-4), so these are held to what one rounding of the inputs makes."""
    reference, step = pair(backbone(name), executor, precision=precision)
    for seed in (1, 2):
        sample = random_sample(seed, batch=8, soft=soft, size=64).to("cuda")
        bound = 1e-5 if executor == "cuda_graph" else noise_bound(reference, sample, seed)
        for each in (reference, step):
            run(each, sample, seed)
        assert_equal_steps(step, reference, bound)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("executor", ["compiled", *GRAPHS])
def test_skeletons_give_the_eager_numbers_whatever_is_missing(executor, precision):
    """One recording, samples with other keypoints missing. FP32: either step is within 5e-6 of float64, or within the
    noise of one rounding."""
    reference, step = pair(skp("masked"), executor, precision=precision)
    for seed, missing in ((1, 0.3), (2, 0.0), (3, 0.8)):
        sample = clips(seed, missing=missing).to("cuda")
        bound = noise_bound(reference, sample, seed)
        for each in (reference, step):
            run(each, sample, seed)
        assert_equal_steps(step, reference, max(bound, 2e-5))
    assert len(step.executor.steps) == 1


@pytest.mark.parametrize("executor", GRAPHS)
def test_skeletons_are_recorded_without_being_asked_to(executor):
    """`missing: auto` becomes masked when it is recorded; against the packed way, FP32."""
    packed = GuidedStep(skp("packed").cuda().train(), 0.5)
    step = GuidedStep(skp("auto").cuda().train(), 0.5, executor=executor)
    for seed in (1, 2):
        for each in (packed, step):
            each.zero_grad()
            each(clips(seed).to("cuda"))["loss"].backward()
        assert_equal_steps(step, packed, 2e-5)


@pytest.mark.parametrize("executor", GRAPHS)
def test_training_through_replays_gives_the_eager_weights(executor):
    """Optimizer, accumulation, short batch, changing alpha and rate, unguided batch, evaluation in between."""
    steps = pair(small_network(), executor)
    optimizers = [torch.optim.SGD(step.parameters(), lr=0.1, momentum=0.9) for step in steps]
    for number in range(8):
        sample = random_sample(number, batch=3 if number % 4 == 3 else 4).to("cuda")
        sample.guided = number % 3 != 2
        for step, optimizer in zip(steps, optimizers, strict=True):
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + number)
            torch.manual_seed(number)
            losses = [step(sample, alpha=0.1 * (1 + number))["loss"] for _ in range(2)]
            (sum(losses) / 2).backward()  # type: ignore[union-attr]
            assert losses[0].item() != losses[1].item()  # dropout is drawn anew
            optimizer.step()
            optimizer.zero_grad()
            step.eval()
            step(sample, outputs=frozenset({"logits"}))
            step.train()
    for found, expected in zip(
        steps[1].network.state_dict().values(), steps[0].network.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("executor", GRAPHS)
def test_a_step_is_captured_once_a_signature_and_replayed(executor):
    _, step = pair(small_network(), executor)
    sample = random_sample(1).to("cuda")
    for _ in range(3):
        step(sample)
    assert len(step.executor.steps) == 1
    recorded = next(iter(step.executor.steps.values()))[1]
    step(sample, alpha=2.0)
    assert len(step.executor.steps) == 1
    step(random_sample(1, batch=2).to("cuda"))
    step.network[1].eval()
    step(sample)
    assert len(step.executor.steps) == 3
    for parameter in step.network.parameters():
        parameter.data = parameter.data.clone()  # both live for a moment, so the address is another
    step.network[1].train()
    step(sample)
    assert all(recorded is not other for _, other in step.executor.steps.values())


def test_draws_follow_the_seed_and_differ_from_step_to_step():
    reference, step = pair(small_network(), "cuda_graph")
    sample = random_sample(1).to("cuda")
    step(sample)
    values = []
    for each in (reference, step, step):
        torch.manual_seed(3)
        values.append([each(sample)["loss"].item() for _ in range(3)])
        step.network.load_state_dict(reference.network.state_dict())
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert values[1] == pytest.approx(values[2], rel=1e-5)
    assert len(set(values[1])) == 3


def test_recordings_of_several_shapes_share_their_memory():
    """A second, smaller shape must cost far less than the first: scratch memory comes from one pool."""
    network = backbone("resnet50")
    _, step = pair(network, "cuda_graph")
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.ndim == 1)  # so that gradients, which each recording owns, are small
    reserved = [torch.cuda.memory_reserved()]
    for batch in (16, 8):
        step(random_sample(1, batch=batch, size=128).to("cuda"))
        torch.cuda.empty_cache()
        reserved.append(torch.cuda.memory_reserved())
    assert reserved[2] - reserved[1] < 0.5 * (reserved[1] - reserved[0])


def test_recomputed_activations_need_less_memory_for_the_same_gradients():
    network = backbone("resnet50").cuda().train()
    other = copy.deepcopy(network)
    recompute_activations(other)
    steps = GuidedStep(network, 0.5), GuidedStep(other, 0.5)
    sample = random_sample(1, batch=16, size=128).to("cuda")
    peaks = []
    for step in steps:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        torch.manual_seed(0)
        step(sample)["loss"].backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert_equal_steps(steps[1], steps[0], 1e-4)
    assert peaks[1] < 0.6 * peaks[0]
