"""A loss that is not finite is read a step late on a GPU; the device leaves the update out by itself."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import random_sample, small_cnn
from tiny_runs import arguments

from provscale import trainer as module
from provscale.command_line import parse
from provscale.config import Config, OptimConfig
from provscale.engine import Engine
from provscale.errors import UserError
from provscale.guidance.step import GuidedStep
from provscale.optim import build_optimizer


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_fused_update_is_left_out_where_the_flag_is_one(name: str) -> None:
    """Parameters and state to the bit; the next update is the one that would have come without it."""
    config = Config(optim=OptimConfig(name=name, lr=0.1, weight_decay=0.1))  # type: ignore[arg-type]
    results = []
    for flags in ([0.0, 1.0, 0.0], [0.0, 0.0]):
        engine = Engine(config)
        step = GuidedStep(small_cnn(), 0.5)
        optimizer = build_optimizer(step.network.named_parameters(), frozenset(), config.optim, fused=True)
        engine.prepare(step, optimizer)
        for flag in flags:
            engine.backward(engine.losses(random_sample(2), 0.5)["loss"])
            before = copy.deepcopy(step.network.state_dict())
            if flag:
                for parameter in step.parameters():
                    parameter.grad.fill_(float("nan"))
            engine.update(skip=torch.tensor(flag))
            changed = [not torch.equal(before[key], value) for key, value in step.network.named_parameters()]
            assert any(changed) == (flag == 0)
        results.append(step.network)
    for found, expected in zip(results[0].parameters(), results[1].parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_fused_optimizer_gives_the_plain_ones_numbers() -> None:
    for name in ("sgd", "adamw"):
        networks = [small_cnn(), small_cnn()]
        for network, fused in zip(networks, (False, True), strict=True):
            config = OptimConfig(name=name, weight_decay=0.01)  # type: ignore[arg-type]
            optimizer = build_optimizer(network.named_parameters(), frozenset(), config, fused=fused)
            for _ in range(3):
                network(random_sample(2).inputs).square().sum().backward()
                optimizer.step()
                optimizer.zero_grad()
        for found, expected in zip(networks[1].parameters(), networks[0].parameters(), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_weights_survive_a_loss_that_is_read_too_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA: rate 1e30, so that the second step's loss is not finite; it is noticed while the third runs."""
    monkeypatch.setattr(module, "build_optimizer", functools.partial(build_optimizer, fused=True))
    trainer = module.Trainer(parse(arguments(tmp_path, optim__lr=1e30, checkpoint__every_steps=9)))
    trainer.unread = 1
    states = []
    original = trainer.optimizer_step

    def step(*given: Any) -> None:
        original(*given)
        states.append({name: value.clone() for name, value in trainer.step.network.named_parameters()})

    monkeypatch.setattr(trainer, "optimizer_step", step)
    with pytest.raises(UserError, match="at step 2"):
        trainer.fit()
    assert len(states) == 2
    for name, value in trainer.step.network.named_parameters():
        assert torch.isfinite(value).all(), name
        assert torch.equal(value, states[0][name]), name
