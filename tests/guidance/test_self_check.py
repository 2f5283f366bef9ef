"""The checks before training: a network without a second derivative and an engine that alters gradients are refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import CLASSES, random_sample, small_cnn, small_vit
from plain_steps import plain_step
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from provscale.config import Config
from provscale.engine import Engine
from provscale.errors import UserError
from provscale.guidance.executors.eager import EagerExecutor
from provscale.guidance.self_check import (
    MOST,
    few_of,
    plain_gradients,
    refuse_unless_alike,
    relative_difference,
    self_check,
    unwrapped_copy,
)
from provscale.guidance.step import GuidedStep
from provscale.sample import Sample

ALPHA = 0.5
KEY = (0, -1, 0)


class OneProcess:
    """The least an engine must do for the check: no wrapping, gradients as `backward` leaves them."""

    name = "one process"

    def __init__(self, step: GuidedStep, alter: Callable[[Tensor], Tensor] = lambda gradient: gradient) -> None:
        self.step, self.prepared, self.alter = step, step, alter

    def mean(self, values: Tensor) -> Tensor:
        return values

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def predict(self, sample: Sample, outputs: frozenset[str]) -> dict[str, Tensor]:
        return self.prepared(sample, outputs=outputs)

    def gradient_of(self, sample: Sample, name: str) -> Tensor:
        self.prepared(sample)["loss"].backward()
        gradient = self.alter(self.step.network.get_parameter(name).grad.clone())
        self.step.zero_grad()
        return gradient


def check(
    network: nn.Module, alter: Callable[[Tensor], Tensor] = lambda gradient: gradient, alpha: float = ALPHA,
    sample: Sample | None = None, precision: str = "no", split_batch: bool = False,
) -> GuidedStep:  # fmt: skip
    step = GuidedStep(network, alpha, precision=precision, split_batch=split_batch)
    self_check(OneProcess(step, alter), step, unwrapped_copy(step), sample or random_sample(2), KEY)  # type: ignore[arg-type]
    return step


# ---- engines -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("alpha", [0.0, ALPHA])
def test_a_right_engine_passes(alpha: float, precision: str) -> None:
    check(small_cnn(), alpha=alpha, precision=precision)
    check(small_vit(), alpha=alpha, precision=precision, sample=random_sample(2, 32))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_one_percent_is_refused_in_any_precision(precision: str) -> None:
    with pytest.raises(UserError, match=r"gradient of '0\.weight' differs .* by 0\.01 relative"):
        check(small_cnn(), lambda gradient: 1.01 * gradient, precision=precision)


class OtherKernels(TorchDispatchMode):
    """Kernels of the same precision that round otherwise, as another library's or a compiler's would."""

    ROUND = frozenset({
        torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default, torch.ops.aten.addmm.default,
        torch.ops.aten.native_batch_norm.default, torch.ops.aten.native_batch_norm_backward.default,
    })  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def round(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        ulps = 2 * torch.rand(value.shape, generator=self.generator) - 1
        return value * (1 + torch.finfo(value.dtype).eps * ulps.to(value.dtype))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func not in self.ROUND:
            return result
        return tuple(map(self.round, result)) if isinstance(result, tuple) else self.round(result)


class OtherExecutor:
    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        with OtherKernels():
            losses, gradients = EagerExecutor()(*arguments, **options)
        return losses, [None if gradient is None else self.scale * gradient for gradient in gradients]


def check_executor(network: nn.Module, executor: OtherExecutor, precision: str = "no") -> None:
    step = GuidedStep(network, ALPHA, precision=precision)
    step.executor = executor
    self_check(OneProcess(step), step, unwrapped_copy(step), random_sample(2), KEY)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_an_executor_may_differ_by_rounding(precision: str) -> None:
    """In bf16 that is 8 % of this network's gradient, more than any fixed bound could allow."""
    check_executor(small_cnn(), OtherExecutor(), precision)


def test_an_executor_off_by_one_percent_is_refused() -> None:
    with pytest.raises(UserError, match=r"differs .* by 0\.01 relative .*guidance.executor auto would train"):
        check_executor(small_cnn(), OtherExecutor(1.01))


def test_rounding_is_no_excuse_for_an_engine_beyond_half_a_percent() -> None:
    """With noise of any size: the engine is compared in exact arithmetic, where it has none."""
    values = torch.ones(4)
    for scale, passes in ((1.004, True), (1.01, False)):
        engine: Any = OneProcess(GuidedStep(small_cnn(), ALPHA))
        arguments = (engine, {"x": scale * values}, {"x": values}, lambda: [2 * values], MOST, "")
        if passes:
            refuse_unless_alike(*arguments)
        else:
            with pytest.raises(UserError, match=r"by 0\.01 relative"):
                refuse_unless_alike(*arguments)


def test_the_engine_is_checked_on_a_few_samples_of_both_kinds() -> None:
    sample = random_sample(2, batch=40, real=range(0, 40, 2))
    few = few_of(sample)
    assert len(few) == 16
    assert int(few.is_synthetic.sum()) == 8
    assert few_of(random_sample(2)).inputs.shape == random_sample(2).inputs.shape


def test_dropout_draws_alike_in_both_runs() -> None:
    check(nn.Sequential(nn.Flatten(), nn.Linear(768, 32), nn.Dropout(0.5), nn.SiLU(), nn.Linear(32, CLASSES)))


ALTERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "clipped as DeepSpeed's default would": lambda g: g / max(float(g.norm()) / 1e-3, 1.0),
    "divided by accumulation once too often": lambda g: g / 2,
    "off by 0.1 %": lambda g: g * 1.001,
    "zero": torch.zeros_like,
    "NaN": lambda g: torch.full_like(g, float("nan")),
    "infinite": lambda g: g / 0,
    "one filter lost": lambda g: g.index_put((torch.tensor(0),), torch.zeros_like(g[0])),
}


@pytest.mark.parametrize("what", ALTERATIONS)
def test_a_wrong_engine_is_refused(what: str) -> None:
    with pytest.raises(UserError, match=r"self-check: .* gradient of '0\.weight' differs .* 'one process'") as caught:
        check(small_cnn(), ALTERATIONS[what])
    assert "\n" not in str(caught.value)


def test_a_wrong_input_gradient_is_refused() -> None:
    step = GuidedStep(small_cnn(), ALPHA)
    engine = OneProcess(step)
    engine.predict = lambda sample, outputs: {"input_gradient": 2 * step(sample, outputs=outputs)["input_gradient"]}  # type: ignore[method-assign]
    with pytest.raises(UserError, match="input gradient differs from an unwrapped copy's by 1 relative"):
        self_check(engine, step, unwrapped_copy(step), random_sample(2), KEY)  # type: ignore[arg-type]


def test_another_process_refusal_reaches_this_one() -> None:
    """Otherwise this one would wait for the other for ever."""
    step = GuidedStep(small_cnn(), ALPHA)
    engine = OneProcess(step)
    engine.gather = lambda value: [value, "model: refused over there"]  # type: ignore[method-assign]
    with pytest.raises(UserError, match="refused over there"):
        self_check(engine, step, unwrapped_copy(step), random_sample(2), KEY)  # type: ignore[arg-type]


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("wrong", [False, True])
def test_the_single_process_engine(accumulation: int, wrong: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real one, which divides each micro-batch's loss by the accumulation; and one that forgets to undo it."""
    config = Config()
    config.train.accumulation = accumulation
    step = GuidedStep(small_cnn(), ALPHA)
    reference, engine = unwrapped_copy(step), Engine(config)
    engine.prepare(step, torch.optim.SGD(step.parameters(), lr=0.1))
    if wrong:
        monkeypatch.setattr(engine.accelerator, "backward", lambda loss: (0.5 * loss).backward())
        with pytest.raises(UserError, match="self-check"):
            self_check(engine, step, reference, random_sample(2).to(engine.device), KEY)
    else:
        self_check(engine, step, reference.to(engine.device), random_sample(2).to(engine.device), KEY)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_check_leaves_no_trace(precision: str) -> None:
    """Parameters, buffers (BatchNorm's statistics and its count) and gradients stay; the mode is training's."""
    network = small_cnn()
    before = copy.deepcopy(network.state_dict())
    step = check(network, precision=precision)
    for name, value in step.network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in step.parameters())
    assert step.training


def test_relative_difference() -> None:
    """3-4-5 triangle: || (0, 4) || / || (3, 4) || = 0.8."""
    assert relative_difference(torch.tensor([3.0, 0.0]), torch.tensor([3.0, 4.0])) == pytest.approx(0.8)
    assert relative_difference(torch.zeros(2), torch.zeros(2)) == 0.0
    assert relative_difference(torch.ones(1), torch.zeros(1)) == 1.0
    assert relative_difference(torch.tensor([float("nan")]), torch.ones(1)) == float("inf")


def test_plain_gradients_are_those_of_ordinary_backward() -> None:
    network, plain, sample = small_cnn(), small_cnn(), random_sample(2)
    plain_step(plain, sample, ALPHA)
    _, found = plain_gradients(GuidedStep(network, ALPHA), sample)
    assert list(found) == [name for name, _ in plain.named_parameters()]
    for name, parameter in plain.named_parameters():
        assert torch.equal(found[name], parameter.grad)
    assert all(parameter.grad is None for parameter in network.parameters())
