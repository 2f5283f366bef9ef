"""The package's LayerNorm against finite differences and PyTorch's own double backward."""

from __future__ import annotations

import copy
import itertools
import warnings
from contextlib import nullcontext

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from provscale.guidance import objective
from provscale.guidance.executors.compiled import CompiledExecutor
from provscale.guidance.executors.cuda_graph import RecordingExecutor, RerunRecording
from provscale.guidance.objective import Objective
from provscale.guidance.step import GuidedStep
from provscale.sample import Sample
from provscale.second_derivatives import layer_norm as module
from provscale.second_derivatives.layer_norm import layer_norm
from provscale.second_derivatives.recompute import recompute_activations
from provscale.second_derivatives.substitute import FastSecondDerivatives

AFFINE = [(True, True), (True, False), (False, True), (False, False)]


def leaf(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(("weighted", "biased"), AFFINE)
@pytest.mark.parametrize(("shape", "normalized"), [((4, 5), (5,)), ((2, 3, 2, 3), (2, 3)), ((3,), (3,))])
def test_against_finite_differences(shape, normalized, weighted, biased):
    """`gradgradcheck` compares with central differences of the first derivative. A large eps makes its part visible."""
    torch.manual_seed(0)
    inputs, weight, bias = leaf(*shape), leaf(*normalized), leaf(*normalized)
    present = [inputs, *([weight] if weighted else []), *([bias] if biased else [])]

    def run(*tensors: torch.Tensor) -> torch.Tensor:
        rest = iter(tensors[1:])
        return layer_norm(tensors[0], normalized, next(rest) if weighted else None, next(rest) if biased else None, 0.1)

    assert torch.autograd.gradcheck(run, present)
    assert torch.autograd.gradgradcheck(run, present)


@pytest.mark.parametrize("asked", [c for r in (1, 2, 3) for c in itertools.combinations(range(3), r)])
def test_every_choice_of_first_gradients_has_pytorchs_second_derivative(asked):
    """The first gradients not asked for, and those whose own gradient is missing, reach the package's as None."""
    torch.manual_seed(0)
    inputs, weight, bias, v = leaf(3, 4, 5), leaf(5), leaf(5), leaf(3, 4, 5)
    leaves = [inputs, weight, bias]
    outer = [torch.randn_like(tensor) for tensor in leaves]
    found = []
    for function in (F.layer_norm, layer_norm):
        outputs = function(inputs, (5,), weight, bias)
        first = torch.autograd.grad(outputs, [leaves[i] for i in asked], v, create_graph=True)
        for kept in (c for r in range(1, len(asked) + 1) for c in itertools.combinations(range(len(asked)), r)):
            score = sum((first[i] * outer[asked[i]]).sum() for i in kept)
            found += torch.autograd.grad(score, [inputs, weight, v], retain_graph=True, materialize_grads=True)
    for mine, theirs in zip(found[len(found) // 2 :], found[: len(found) // 2], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def double_backward(function, inputs, weight, bias, v, u) -> list[torch.Tensor]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (inputs, weight, bias, v)]
    outputs = function(leaves[0], leaves[1].shape, *leaves[1:3])
    (first,) = torch.autograd.grad(outputs, leaves[0], leaves[3].to(outputs.dtype), create_graph=True)
    return [outputs, first, *torch.autograd.grad(first, [leaves[0], leaves[1], leaves[3]], u.to(first.dtype))]


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).detach().norm() / expected.detach().double().norm())


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_the_numbers_of_pytorchs_double_backward(dtype, allowed):
    """Rows far from zero mean, as in a residual stream. bf16 keeps 8 bits: compared with FP64 of the same values."""
    torch.manual_seed(0)
    weight, bias = torch.randn(48).to(dtype), torch.randn(48).to(dtype)
    inputs, v, u = ((torch.randn(6, 7, 48) + shift).to(dtype) for shift in (2, 0, 0))
    found = double_backward(layer_norm, inputs, weight, bias, v, u)
    expected = double_backward(F.layer_norm, *(t.double() for t in (inputs, weight, bias, v, u)))
    for mine, exact in zip(found, expected, strict=True):
        assert mine.dtype == dtype
        assert relative(mine, exact) <= allowed


def test_inputs_and_gradients_that_are_not_contiguous():
    torch.manual_seed(0)
    inputs, v, u = (torch.randn(2, 5, 3, 4, dtype=torch.float64).permute(0, 2, 3, 1) for _ in range(3))
    weight, bias = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    arguments = (inputs, weight, bias, v, u)
    for mine, theirs in zip(
        double_backward(layer_norm, *arguments), double_backward(F.layer_norm, *arguments), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_autocast_gives_pytorchs_types_and_values():
    """On a CPU autocast leaves LayerNorm in the type of its input, also with FP32 weights."""
    torch.manual_seed(0)
    weight, bias = torch.randn(16, requires_grad=True), torch.randn(16, requires_grad=True)
    for dtype in (torch.float32, torch.bfloat16):
        inputs = torch.randn(4, 16).to(dtype).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            expected = F.layer_norm(inputs, (16,), weight, bias)
            found = layer_norm(inputs, (16,), weight, bias)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        results = []
        for outputs in (found, expected):
            (first,) = torch.autograd.grad(outputs.float().square().sum(), inputs, create_graph=True)
            results.append([first, *torch.autograd.grad(first.float().square().sum(), [inputs, weight])])
        for mine, theirs in zip(*results, strict=True):
            assert mine.dtype == theirs.dtype
            assert relative(mine, theirs) <= (1e-5 if dtype == torch.float32 else 5e-2)


@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4)])
def test_an_empty_batch(shape):
    inputs = torch.zeros(shape, requires_grad=True)
    outputs = layer_norm(inputs, (4,), torch.ones(4, requires_grad=True), torch.zeros(4))
    assert outputs.shape == shape
    assert torch.autograd.grad(outputs.sum(), inputs)[0].shape == shape


def test_it_is_really_used_and_only_where_a_gradient_can_follow():
    inputs = torch.randn(2, 4, requires_grad=True)
    norm = nn.LayerNorm(4)
    with FastSecondDerivatives():
        assert type(norm(inputs).grad_fn).__name__ == "LayerNormBackward"
        with torch.no_grad():
            assert norm(inputs).grad_fn is None


def test_a_wrong_shape_is_refused_as_by_pytorch():
    with FastSecondDerivatives(), pytest.raises(RuntimeError, match="normalized_shape"):
        nn.LayerNorm(4)(torch.randn(2, 3, requires_grad=True))


def test_the_input_gradients_pass_computes_no_weight_gradient(monkeypatch):
    masks = []
    original = module.kernel
    monkeypatch.setattr(module, "kernel", lambda *args: masks.append(tuple(args[-1])) or original(*args))
    inputs = torch.randn(2, 4, requires_grad=True)
    norm = nn.LayerNorm(4)
    with FastSecondDerivatives():
        outputs = norm(inputs)
    (gradient,) = torch.autograd.grad(outputs.square().sum(), inputs, create_graph=True)
    assert masks == [(True, False, False)]
    torch.autograd.grad(gradient.square().sum(), [norm.weight, norm.bias])
    assert masks[-1][1:] == (True, True)


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_a_whole_guided_step_gives_the_numbers_of_pytorchs_double_backward(name, monkeypatch):
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=5).double()
    size = 64 if name == "test_convnext" else network.default_cfg["input_size"][-1]
    sample = Sample.real(torch.randn(3, 3, size, size, dtype=torch.float64), torch.tensor([0, 1, 2]))
    sample.targets = torch.tensor([[0, 3], [1, 2], [4, 0]])
    sample.mixing_weight = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    sample.provenance_mask[..., : size // 2] = 0
    sample.is_synthetic, sample.guided = torch.ones(3, dtype=torch.bool), True
    parameters = list(network.parameters())
    found = []
    for context in (nullcontext(), FastSecondDerivatives()):
        monkeypatch.setattr(objective, "fast_second_derivatives", lambda network, context=context: context)
        losses, gradients = Objective()(network, parameters, sample, 1.0)
        found.append([losses["loss"], losses["loss_guidance"], *gradients])
    for mine, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("sampled_term", ["none", "sample"])
@pytest.mark.parametrize("maker", ["traced", "recorded", "recompute"])
def test_every_way_to_run_a_guided_vision_transformer_agrees(maker, sampled_term):
    """The trace, the recording and the recomputation follow the package's own functions; also in `verify` mode."""
    torch.manual_seed(0)
    network = timm.create_model("test_vit", num_classes=5, img_size=32, patch_size=8)
    sample = Sample.real(torch.randn(3, 3, 32, 32), torch.tensor([0, 1, 2]))
    sample.targets, sample.mixing_weight = torch.tensor([[0, 3], [1, 2], [4, 0]]), torch.tensor([0.2, 0.5, 0.9])
    sample.provenance_mask[..., :16] = 0
    sample.is_synthetic, sample.guided = torch.ones(3, dtype=torch.bool), True
    expected = GuidedStep(copy.deepcopy(network), 0.5, sampled_term=sampled_term)
    found = GuidedStep(network, 0.5, sampled_term=sampled_term)
    if maker == "recompute":
        assert recompute_activations(network)
    else:
        found.executor = CompiledExecutor("eager") if maker == "traced" else RecordingExecutor(None, RerunRecording)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="guidance.executor")
        for step in (found, expected):
            torch.manual_seed(1)
            step(sample)["loss"].backward()
    for mine, theirs in zip(found.network.parameters(), expected.network.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)
