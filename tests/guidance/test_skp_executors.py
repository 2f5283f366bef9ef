"""SKP in fixed shapes: the numbers of the packed way, and what executors that record a step make of it."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from test_executors import MAKERS, assert_equal_steps, recorded, with_executor
from torch import nn

from provscale.errors import UserError
from provscale.guidance.executors.compiled import CompiledExecutor, TracedStep
from provscale.guidance.executors.eager import EagerExecutor
from provscale.guidance.objective import Objective
from provscale.guidance.step import GuidedStep
from provscale.models import StructuredKeypointPooling
from provscale.sample import Sample
from provscale.second_derivatives.masked_norm import MaskedBatchNorm1d

B, P, F, V, K = 4, 4, 5, 6, 5


def clips(seed: int, soft: bool = True, missing: float = 0.3) -> Sample:
    """Mixed clips in which keypoints, a person and, in clip 1, everybody are missing, but not x and y."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(B, P, F, V, 3, generator=generator)
    points[..., 2] = points[..., 2].abs() + 0.1
    there = torch.rand(B, P, F, V, generator=generator) >= missing
    there[0, -1], there[1] = False, False
    points[..., 2] *= there
    sample = Sample.real(points.flatten(3), torch.randint(K, (B,), generator=generator))
    if soft:
        sample.targets = torch.randint(K, (B, 2), generator=generator)
        sample.mixing_weight = torch.rand(B, generator=generator)
    sample.provenance_mask = (torch.rand(B, P, F, 3 * V, generator=generator) > 0.5).float()
    sample.is_synthetic, sample.guided = torch.arange(B) != 2, True
    return sample


def network(missing: str = "auto", width: int = 16) -> StructuredKeypointPooling:
    torch.manual_seed(0)
    built = StructuredKeypointPooling(K, keypoints=V, width=width, missing="packed").train()
    built(clips(9).inputs)  # statistics that are not those of a new network
    other = StructuredKeypointPooling(K, keypoints=V, width=width, missing=missing)
    other.load_state_dict(built.state_dict())
    return other


def run(
    model: nn.Module, sample: Sample, training: bool, **arguments: str
) -> tuple[GuidedStep, dict[str, torch.Tensor]]:
    step = GuidedStep(model, 0.5, **arguments).train(training)  # type: ignore[arg-type]
    losses = step(sample)
    losses["loss"].backward()
    return step, {name: loss.detach() for name, loss in losses.items()}


# the same numbers


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_masked_gives_the_packed_numbers(training: bool, soft: bool) -> None:
    """FP32, 1e-5 relative: losses, every gradient, running statistics; then logits and skeletons' scores."""
    for seed in (1, 2):
        sample = clips(seed, soft)
        steps = [run(network(missing), sample, training) for missing in ("packed", "masked")]
        (packed, expected), (masked, found) = steps
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=0)
        assert float(expected["loss_guidance"]) > 0
        assert_equal_steps(masked, packed, 1e-5)
        outputs = [step.network.logits_and_instance_scores(sample.inputs) for step in (packed, masked)]
        for mine, theirs in zip(outputs[1], outputs[0], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
            assert (mine == 0).equal(theirs == 0)  # skeletons that are not there


def test_in_float64_the_two_ways_agree_to_its_rounding() -> None:
    sample = clips(1)
    sample.inputs = sample.inputs.double()
    steps = [run(network(missing).double(), sample, True)[0] for missing in ("packed", "masked")]
    assert_equal_steps(steps[1], steps[0], 1e-12)


def test_under_autocast_masked_is_as_near_to_fp32_as_packed() -> None:
    """bf16 moves which point is the largest, so the two ways may differ by what bf16 changes; neither may differ more.

    Checked is the distance of all gradients from the FP32 ones, within a tenth; and logits of one forward pass, whose
    maxima are of values between 0 and 8 with 2^-9 relative rounding in seven layers.
    """
    sample = clips(1)
    gradients, logits = {}, {}
    for missing, precision in (("packed", "no"), ("packed", "bf16"), ("masked", "bf16")):
        step, _ = run(network(missing), sample, True, precision=precision)
        gradients[missing, precision] = torch.cat([p.grad.flatten() for p in step.network.parameters()])  # type: ignore[union-attr]
        logits[missing, precision] = step(sample, outputs=frozenset({"logits"}))["logits"]
    reference = gradients["packed", "no"]
    packed, masked = (float((gradients[way, "bf16"] - reference).norm()) for way in ("packed", "masked"))
    assert 0 < masked <= 1.1 * packed
    torch.testing.assert_close(logits["masked", "bf16"], logits["packed", "bf16"], rtol=2**-5, atol=2**-5)


def test_not_even_nan_leaks_from_a_slot_that_is_not_there() -> None:
    sample = clips(1)
    spoilt = sample.inputs.unflatten(3, (V, 3)).clone()
    spoilt[..., :2][spoilt[..., 2] == 0] = torch.nan
    expected, _ = run(network("masked"), sample, True)
    sample.inputs = spoilt.flatten(3)
    found, _ = run(network("masked"), sample, True)
    assert_equal_steps(found, expected, 1e-12)


# BatchNorm over rows that are there


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
def test_masked_norm_is_batch_norm_of_the_rows_that_are_there(momentum: float | None) -> None:
    """Against `nn.BatchNorm1d`: outputs, gradients and the statistics after three steps, the last in eval mode."""
    torch.manual_seed(0)
    plain = nn.BatchNorm1d(3, momentum=momentum).double()
    masked = MaskedBatchNorm1d(3, momentum=momentum).double()
    for number in range(3):
        inputs, present = 3 + 2 * torch.randn(20, 3, dtype=torch.float64), torch.rand(20) < 0.6
        plain.train(number < 2)
        masked.train(number < 2)
        leaves = [inputs.clone().requires_grad_() for _ in range(2)]
        outputs = [plain(leaves[0][present]), masked(leaves[1], present)[present]]
        torch.testing.assert_close(outputs[1], outputs[0])
        for output in outputs:
            output.pow(3).sum().backward()
        torch.testing.assert_close(leaves[1].grad, leaves[0].grad)
        torch.testing.assert_close(masked.weight.grad, plain.weight.grad)
        torch.testing.assert_close(masked.state_dict(), plain.state_dict())


def test_masked_norm_against_finite_differences() -> None:
    """`gradgradcheck` compares with central differences of the first derivative; absent rows' gradients are 0."""
    torch.manual_seed(0)
    present = torch.tensor([True, False, True, True, False, True])
    inputs = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    norm = MaskedBatchNorm1d(3, track_running_stats=False).double()
    weight, bias = (torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def function(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(norm, {"weight": weight, "bias": bias}, (inputs, present))

    assert torch.autograd.gradcheck(function, (inputs, weight, bias))
    assert torch.autograd.gradgradcheck(function, (inputs, weight, bias))
    (gradient,) = torch.autograd.grad(function(inputs, weight, bias).pow(3).sum(), inputs)
    assert (gradient[~present] == 0).all()


def test_masked_norm_of_no_row_and_of_one() -> None:
    """As PyTorch's of an empty list: no statistics change. Of one row, which PyTorch refuses: the bias."""
    norm = MaskedBatchNorm1d(3)
    before = copy.deepcopy(norm.state_dict())
    inputs = torch.randn(4, 3, requires_grad=True)
    outputs = norm(inputs, torch.zeros(4, dtype=torch.bool))
    outputs.sum().backward()
    assert (outputs == 0).all()
    assert inputs.grad is not None
    assert (inputs.grad == 0).all()
    assert norm.num_batches_tracked == 1
    torch.testing.assert_close(norm.running_mean, before["running_mean"])
    torch.testing.assert_close(norm.running_var, before["running_var"])
    with torch.no_grad():
        norm.bias.fill_(2.0)
    torch.testing.assert_close(norm(inputs, torch.arange(4) == 1)[1], torch.full((3,), 2.0))


# executors


@pytest.mark.parametrize("maker", ["traced", "recorded", "recorded compiled"])
def test_one_recording_serves_samples_with_other_keypoints_missing(maker: str) -> None:
    """Against the eager step on the packed way, with different keypoints missing in every sample."""
    executor = MAKERS[maker]()
    steps = [with_executor(network("packed"), EagerExecutor()), with_executor(network(), executor)]
    for seed, missing in ((1, 0.3), (2, 0.0), (3, 0.8)):
        for step in steps:
            step.train().zero_grad()
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message="guidance.executor")
                step(clips(seed, missing=missing))["loss"].backward()
        assert_equal_steps(steps[1], steps[0], 1e-5)
    assert len(executor.steps) == 1


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("guided", [True, False])
def test_no_shape_and_no_branch_depends_on_the_data(guided: bool, training: bool) -> None:
    """A trace on tensors without data fails where the host would have to read one; the packed way's does."""
    sample = clips(1)
    sample.guided = guided
    for missing in ("masked", "packed"):
        model = network(missing).train(training)
        if missing == "masked":
            graph = TracedStep(model, list(model.parameters()), sample, Objective(), 0.5).graph
            names = {str(node.target) for node in graph.graph.nodes}
            assert not {name for name in names if "nonzero" in name or "_local_scalar" in name}
        else:
            with pytest.raises(Exception, match=r"nonzero|data-dependent|DynamicOutputShape"):
                TracedStep(model, list(model.parameters()), sample, Objective(), 0.5)


def test_auto_is_packed_until_an_executor_records_the_step() -> None:
    model = network()
    run(model, clips(1), True)
    assert not model.masked
    with_executor(model, recorded()).train()(clips(1))
    assert model.masked


@pytest.mark.parametrize(
    ("name", "maker"),
    [("compiled", lambda: CompiledExecutor("eager")), ("cuda_graph", recorded)],
    ids=["compiled", "cuda_graph"],
)
def test_packed_with_an_executor_that_needs_fixed_shapes_is_refused_in_one_line(name, maker) -> None:
    with pytest.raises(UserError, match=rf"^guidance\.executor: is {name}, .*missing is packed.*missing to auto.*$"):
        with_executor(network("packed"), maker())(clips(1))
