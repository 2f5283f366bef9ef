"""Every executor gives the eager step's numbers: losses, gradients, BatchNorm statistics and random draws."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from networks import as_float64, assert_rounds_alike
from timm.layers import DropPath
from torch import nn
from torch._dynamo.utils import counters

from provscale.errors import UserError
from provscale.guidance.executors import EXECUTORS
from provscale.guidance.executors.compiled import CompiledExecutor
from provscale.guidance.executors.cuda_graph import MOVES_ALLOWED, RecordingExecutor, RerunRecording
from provscale.guidance.executors.eager import EagerExecutor
from provscale.guidance.step import GuidedStep
from provscale.sample import Sample

CLASSES = 5


class Residual(nn.Module):
    """Depthwise and strided convolutions, BatchNorm, drop path and dropout: what differs between executors."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.GELU(), nn.Conv2d(8, 8, 1)
        )
        self.drop_path = DropPath(0.3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs + self.drop_path(self.body(inputs))


def small_network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), Residual(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(32, CLASSES),
    )  # fmt: skip


def random_sample(seed: int, batch: int = 4, soft: bool = True, size: int = 12) -> Sample:
    generator = torch.Generator().manual_seed(seed)
    sample = Sample.real(
        torch.randn(batch, 3, size, size, generator=generator), torch.randint(CLASSES, (batch,), generator=generator)
    )
    if soft:
        sample.targets = torch.randint(CLASSES, (batch, 2), generator=generator)
        sample.mixing_weight = torch.rand(batch, generator=generator)
    sample.provenance_mask = (torch.rand(batch, 1, size, size, generator=generator) > 0.5).float()
    sample.is_synthetic = torch.arange(batch) != 1
    sample.guided = True
    return sample


def recorded(inner=None):
    return RecordingExecutor(inner, RerunRecording)


MAKERS = {
    "traced": lambda: CompiledExecutor("eager"),
    "compiled": lambda: CompiledExecutor("aot_eager"),
    "recorded": recorded,
    "recorded compiled": lambda: recorded(CompiledExecutor("eager")),
}


def with_executor(network: nn.Module, executor, **arguments) -> GuidedStep:
    step = GuidedStep(network, 0.5, **arguments)
    step.executor = executor
    return step


def worst_gradient(found: GuidedStep, expected: GuidedStep) -> float:
    """Largest difference of a parameter's gradient, of its norm, or of 1 % of the largest for those that vanish."""
    gradients = [parameter.grad for parameter in expected.network.parameters()]
    largest = max(float(gradient.norm()) for gradient in gradients)
    ratios = [
        float((parameter.grad - gradient).norm()) / max(float(gradient.norm()), 1e-2 * largest)
        for parameter, gradient in zip(found.network.parameters(), gradients, strict=True)
    ]
    return float(torch.tensor(ratios).max())  # NaN, if one is


def assert_equal_steps(found: GuidedStep, expected: GuidedStep, relative: float) -> None:
    """Every buffer and gradient within `relative`; see `worst_gradient`."""
    assert worst_gradient(found, expected) <= relative
    for found_buffer, buffer in zip(found.network.buffers(), expected.network.buffers(), strict=True):
        torch.testing.assert_close(found_buffer, buffer, rtol=relative, atol=relative)


@pytest.mark.parametrize("maker", MAKERS)
def test_training_gives_the_eager_steps_numbers(maker):
    """Accumulation, a short batch, hard labels, evaluation in between, other rates, alphas and an unguided batch."""
    network = small_network()
    executor = MAKERS[maker]()
    steps = [with_executor(network, EagerExecutor()), with_executor(copy.deepcopy(network), executor)]
    optimizers = [torch.optim.SGD(step.parameters(), lr=0.1, momentum=0.9) for step in steps]
    unguided = random_sample(6)
    unguided.guided = False
    samples = [random_sample(1), random_sample(2), random_sample(3, batch=3), unguided, random_sample(1)]
    for number, sample in enumerate(samples):
        last_draws = []
        for step, optimizer in zip(steps, optimizers, strict=True):
            optimizer.param_groups[0]["lr"] = 0.01 / (1 + number)
            torch.manual_seed(100 + number)
            losses = [step(sample, alpha=0.5 + number), step(sample, alpha=0.5 + number)]
            # Both are held before either is differentiated: the second replay must not overwrite the first.
            for loss in losses:
                (loss["loss"] / 2).backward()
            last_draws.append((torch.rand(3), losses))
        (expected_draw, expected_losses), (draw, found_losses) = last_draws
        torch.testing.assert_close(draw, expected_draw, rtol=0, atol=0)
        assert expected_losses[0]["loss"].item() != expected_losses[1]["loss"].item()  # dropout is drawn anew
        for found, expected in zip(found_losses, expected_losses, strict=True):
            for name in ("loss", "loss_cls", "loss_guidance"):
                torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-7)
        assert_equal_steps(steps[1], steps[0], 1e-5)
        for step, optimizer in zip(steps, optimizers, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            step.eval()
            step(sample, outputs=frozenset({"logits", "input_gradient"}))
            step.train()
    # One recording each: full batch, short batch, unguided. Alpha, rate and repetition need no other.
    assert len(executor.steps) == 3
    # Two forward passes a step, each counted once by BatchNorm.
    assert int(steps[1].network[1].num_batches_tracked) == 2 * len(samples)


@pytest.mark.parametrize("maker", ["traced", "recorded"])
def test_bf16_rounds_as_the_eager_step(maker):
    network = small_network()
    steps = [
        with_executor(copy.deepcopy(network), MAKERS[maker](), precision="bf16"),
        with_executor(copy.deepcopy(network), EagerExecutor(), precision="bf16"),
        with_executor(network.double(), EagerExecutor()),
    ]
    for step in steps:
        torch.manual_seed(0)
        sample = random_sample(1)
        step(as_float64(sample) if step is steps[2] else sample)["loss"].backward()
    assert_rounds_alike(*(torch.cat([each.grad.flatten() for each in step.parameters()]) for step in steps))


@pytest.mark.parametrize("maker", ["traced", "recorded"])
def test_modes_and_frozen_parameters_are_followed(maker):
    network = small_network()
    executor = MAKERS[maker]()
    reference, step = with_executor(network, EagerExecutor()), with_executor(copy.deepcopy(network), executor)
    sample = random_sample(1, soft=False)
    for change in (lambda n: n, lambda n: n[1].eval(), lambda n: n[0].weight.requires_grad_(False), lambda n: n.eval()):
        for each in (reference, step):
            change(each.network)
            each.zero_grad()
            torch.manual_seed(0)
            each(sample)["loss"].backward()
        for found, expected in zip(step.network.parameters(), reference.network.parameters(), strict=True):
            assert (found.grad is None) == (expected.grad is None)
            if expected.grad is not None:
                torch.testing.assert_close(found.grad, expected.grad, rtol=1e-5, atol=1e-7)
        for found, expected in zip(step.network.buffers(), reference.network.buffers(), strict=True):
            torch.testing.assert_close(found, expected)
    assert len(executor.steps) == 4


def test_recording_follows_parameters_that_move_until_they_move_all_the_time():
    network = small_network()
    executor = recorded()
    step = with_executor(network, executor)
    sample = random_sample(1)

    def move() -> None:
        for parameter in network.parameters():
            parameter.data = parameter.data.clone() * 1.1

    for _ in range(MOVES_ALLOWED):
        step(sample)
        move()
        torch.manual_seed(1)
        found = step(sample)["loss"]
        torch.manual_seed(1)
        reference = with_executor(copy.deepcopy(network), EagerExecutor())
        torch.testing.assert_close(found, reference(sample)["loss"])
    move()
    with pytest.raises(UserError, match="parameters move in memory"):
        step(sample)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without CUDA")
@pytest.mark.parametrize("name", ["cuda_graph", "cuda_graph_compiled"])
def test_cuda_graph_without_cuda_is_refused_in_one_line(name):
    with pytest.raises(UserError, match=rf"^guidance\.executor: is {name}, .*use eager or compiled$"):
        GuidedStep(small_network(), 0.1, executor=name)


def test_cuda_recording_of_a_step_on_the_cpu_is_refused():
    step = with_executor(small_network(), RecordingExecutor())
    with pytest.raises(UserError, match="runs on 'cpu'"):
        step(random_sample(1))


class Deciding(nn.Module):
    """Branches on a tensor's value, which no trace can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.network = small_network()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs = self.network(inputs)
        return outputs if outputs.sum() > 0 else 2 * outputs


def test_what_cannot_be_compiled_runs_eagerly_after_one_warning():
    network = Deciding()
    reference = with_executor(copy.deepcopy(network), EagerExecutor())
    step = with_executor(network, CompiledExecutor("eager"))
    torch.manual_seed(0)
    with pytest.warns(RuntimeWarning, match="could not be compiled and runs eagerly"):
        found = step(random_sample(1))["loss"]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="guidance.executor")
        step(random_sample(2, batch=3))
    torch.manual_seed(0)
    torch.testing.assert_close(found, reference(random_sample(1))["loss"], rtol=0, atol=0)


def test_compiling_says_once_how_long_it_took(capfd):
    step = with_executor(small_network(), CompiledExecutor("eager"))
    for seed in (1, 2):
        step(random_sample(seed))
    lines = [line for line in capfd.readouterr().err.splitlines() if "compiled the step" in line]
    assert len(lines) == 1
    assert "[4, 3, 12, 12]" in lines[0]
    assert " s (" in lines[0]


@pytest.mark.parametrize("maker", MAKERS)
def test_a_copied_step_records_its_own_network(maker):
    step = with_executor(small_network(), MAKERS[maker]())
    step.eval()
    sample = random_sample(1)
    step(sample)
    other = copy.deepcopy(step)
    with torch.no_grad():
        for parameter in other.network.parameters():
            parameter.mul_(1.5)
    expected = with_executor(copy.deepcopy(other.network), EagerExecutor()).eval()(sample)["loss"]
    torch.testing.assert_close(other(sample)["loss"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_inductor_compiles_the_step_once(tmp_path, monkeypatch):
    """With Inductor's own kernels, on a network small enough for its C++ compiler. What it compiled is on disk, where
    a second step (in life that of a run started again) finds it."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Dropout(0.2), nn.Flatten(),
                            nn.Linear(400, CLASSES))  # fmt: skip
    found = []
    for _ in range(2):
        counters.clear()
        reference = GuidedStep(copy.deepcopy(network), 0.5)
        step = GuidedStep(copy.deepcopy(network), 0.5, executor="compiled")
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="guidance.executor")
            for seed in (1, 2):
                for each in (reference, step):
                    each.zero_grad()
                    torch.manual_seed(seed)
                    each(random_sample(seed))["loss"].backward()
                assert_equal_steps(step, reference, 1e-5)
        found.append({name: counters["aot_autograd"][f"autograd_cache_{name}"] for name in ("hit", "miss", "bypass")})
    assert found == [{"hit": 0, "miss": 1, "bypass": 0}, {"hit": 1, "miss": 0, "bypass": 0}]


def test_registered_names():
    assert set(EXECUTORS) >= {"eager", "compiled", "cuda_graph", "cuda_graph_compiled"}
