"""Optimizer and schedule against their formulas."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import rows, train
from torch import nn

from provscale.config import OptimConfig
from provscale.data.splits import class_weights
from provscale.errors import UserError
from provscale.optim import build_optimizer, learning_rate, set_learning_rate


def test_schedules_follow_their_formulas() -> None:
    """Linear: lr (1 - t/T). Half a cosine: lr (1 + cos(pi t/T)) / 2 (Loshchilov and Hutter, 2017, eq. 5)."""
    total = 10
    for step in range(total):
        share = step / total
        assert learning_rate(OptimConfig(lr=0.3, schedule="linear"), step, total) == pytest.approx(0.3 * (1 - share))
        cosine = 0.3 * 0.5 * (1 + math.cos(math.pi * share))
        assert learning_rate(OptimConfig(lr=0.3, schedule="cosine"), step, total) == pytest.approx(cosine)
        assert learning_rate(OptimConfig(lr=0.3, schedule="constant"), step, total) == 0.3


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_logged_rates_are_those_of_the_schedule(tmp_path: Path, schedule: str) -> None:
    """max_steps 5 of the 8 that two epochs have: the schedule ends there too."""
    run = train(tmp_path, optim__schedule=schedule, optim__lr=0.1, train__max_steps=5)
    rates = [row["lr"] for row in rows(run) if row["kind"] == "train"]
    shares = [step / 5 for step in range(5)]
    expected = [0.1 * (1 - s if schedule == "linear" else (1 + math.cos(math.pi * s)) / 2) for s in shares]
    assert rates == pytest.approx(expected)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def step_once(network: nn.Module, config: OptimConfig, new: frozenset[str], rate: float) -> dict[str, torch.Tensor]:
    """One update with all gradients 1. Returns the change of every parameter."""
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    optimizer = build_optimizer(network.named_parameters(), new, config)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    set_learning_rate(optimizer, rate)
    optimizer.step()
    return {name: value.detach() - before[name] for name, value in network.named_parameters()}


def test_sgd_with_decay_and_new_layers() -> None:
    """First step of SGD: -rate * (gradient + decay * weight); new layers ten times that."""
    network = small()
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    change = step_once(network, OptimConfig(weight_decay=0.1, head_lr_multiplier=10.0),
                       frozenset({"1.weight", "1.bias"}), 0.5)  # fmt: skip
    for name, value in change.items():
        factor = 10.0 if name.startswith("1.") else 1.0
        torch.testing.assert_close(value, -0.5 * factor * (1 + 0.1 * before[name]))


def test_sgd_momentum() -> None:
    """Constant gradient 1: the second velocity is 1 + momentum."""
    network = small()
    optimizer = build_optimizer(network.named_parameters(), frozenset(), OptimConfig(momentum=0.7))
    changes = []
    for _ in range(2):
        before = network[0].weight.detach().clone()
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        set_learning_rate(optimizer, 0.5)
        optimizer.step()
        changes.append(network[0].weight.detach() - before)
    torch.testing.assert_close(changes[0], torch.full_like(changes[0], -0.5))
    torch.testing.assert_close(changes[1], torch.full_like(changes[1], -0.5 * 1.7))


def test_adamw_first_step() -> None:
    """First step of AdamW (Loshchilov and Hutter, 2019): -rate * (sign of the gradient + decay * weight)."""
    network = small()
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    change = step_once(network, OptimConfig(name="adamw", weight_decay=0.1, momentum=0.8), frozenset(), 0.5)
    for name, value in change.items():
        torch.testing.assert_close(value, -0.5 * (1 + 0.1 * before[name]), rtol=1e-5, atol=1e-6)


def test_frozen_parameters_are_left_out() -> None:
    network = small()
    network[0].requires_grad_(False)
    optimizer = build_optimizer(network.named_parameters(), frozenset(), OptimConfig())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2


def movement(tmp_path: Path, name: str, **changes: Any) -> float:
    """|| parameters after one SGD step at rate 1 without momentum - before ||, which is the gradient's norm."""
    common = {"optim__momentum": 0.0, "optim__lr": 1.0, "train__max_steps": 1, "model__name": "test_vit",
              "model__options": "{img_size: 32}"}  # fmt: skip
    after = load_file(train(tmp_path, name, **common, **changes) / "checkpoints" / "final.safetensors")
    still = {**common, "optim__lr": 0.0}
    before = load_file(train(tmp_path, f"{name}-0", **still, **changes) / "checkpoints" / "final.safetensors")
    return float(torch.cat([(after[key] - before[key]).double().flatten() for key in after]).norm())


def test_gradients_are_clipped_only_when_asked(tmp_path: Path) -> None:
    """Unclipped, this step's gradient is longer than 1 (where DeepSpeed would clip silently); clipped, it is 0.05."""
    assert movement(tmp_path, "free") > 1.0
    assert movement(tmp_path, "clipped", optim__clip_norm=0.05) == pytest.approx(0.05, rel=1e-3)


class Labels:
    def __init__(self, labels: list[int]) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def label(self, index: int) -> int:
        return self.labels[index]


def test_class_weights_are_inverse_frequencies_with_mean_1_over_samples() -> None:
    """Counts 6, 2: weights 8 / (2 * 6) and 8 / (2 * 2); (6 * 2/3 + 2 * 2) / 8 = 1."""
    weights = class_weights(Labels([0] * 6 + [1] * 2), 2)  # type: ignore[arg-type]
    torch.testing.assert_close(weights, torch.tensor([2 / 3, 2.0]))
    with pytest.raises(UserError, match="class 2 has no training sample"):
        class_weights(Labels([0, 1]), 3)  # type: ignore[arg-type]
