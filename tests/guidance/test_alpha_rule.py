"""Alpha as a ratio of gradients: measured over the first guided steps, then fixed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import random_sample, smooth_network
from tiny_runs import arguments, rows

from provscale.command_line import parse
from provscale.engine import build_engine
from provscale.errors import UserError
from provscale.guidance.alpha_rule import gradient_lengths, gradient_scale, weight_of
from provscale.guidance.executors.compiled import CompiledExecutor
from provscale.guidance.loss import guidance_loss
from provscale.guidance.options import GuidanceOptions
from provscale.guidance.step import GuidedStep
from provscale.optim import build_optimizer
from provscale.run.checkpoint_folder import read_progress
from provscale.trainer import Trainer

RULE: dict[str, Any] = {"guidance__alpha_rule": "gradient_ratio", "guidance__alpha": 0.3, "guidance__alpha_steps": 3}


def run(folder: Path, name: str = "run", **changes: Any) -> tuple[list[dict[str, Any]], Trainer]:
    """The rows of a tiny run's steps, each with its weight of L_PG: (loss - loss_cls) / loss_guidance."""
    trainer = Trainer(parse(arguments(folder, name, **{**RULE, **changes})))
    if trainer.config.guidance.executor == "compiled":
        trainer.step.executor = CompiledExecutor("eager")  # the traced graph without minutes of Inductor
    trainer.fit()
    steps = [row for row in rows(folder / name) if row["kind"] == "train"]
    for row in steps:
        row["weight"] = (row["loss"] - row["loss_cls"]) / row["loss_guidance"] if row["loss_guidance"] else 0.0
    return steps, trainer


def test_lengths_are_those_of_the_whole_batch_of_all_micro_batches() -> None:
    """Against autograd on the batch as one: without BatchNorm the mean over two halves is that of the whole."""
    network, sample = smooth_network(), random_sample(2, real=(1,))
    engine = build_engine(parse(["--train.self_check=false"]))
    engine.prepare(
        GuidedStep(network, 0.5), build_optimizer(network.named_parameters(), frozenset(), engine.config.optim)
    )
    half = len(sample) // 2
    found = gradient_lengths(engine, [sample[:half], sample[half:]], (0, "step", 0))
    inputs = sample.inputs.clone().requires_grad_()
    logits = network(inputs)
    cross = [torch.nn.functional.cross_entropy(logits, column, reduction="none") for column in sample.targets.T]
    losses = {
        "gradient_norm_cls": (sample.mixing_weight * cross[0] + (1 - sample.mixing_weight) * cross[1]).mean(),
        "gradient_norm_guidance": guidance_loss(logits, inputs, sample),
    }
    assert found.keys() == losses.keys()
    for name, loss in losses.items():
        gradients = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True, allow_unused=True)
        squares = sum(float(gradient.square().sum()) for gradient in gradients if gradient is not None)
        assert found[name] == pytest.approx(math.sqrt(squares), rel=1e-5)


def test_the_weight_is_alpha_in_units_of_the_geometric_mean() -> None:
    """2 and 8 have the geometric mean 4."""
    assert weight_of(0.5, [2.0, 8.0]) == pytest.approx(2.0)
    assert weight_of(0.5, []) == 0.0
    assert gradient_scale({"gradient_norm_cls": 3.0, "gradient_norm_guidance": 0.5}) == 6.0
    for cls, guidance in ((1.0, 0.0), (0.0, 1.0), (math.nan, 1.0), (1.0, math.nan), (math.inf, 1.0)):
        assert gradient_scale({"gradient_norm_cls": cls, "gradient_norm_guidance": guidance}) is None


def test_a_run_measures_its_first_guided_steps_and_fixes_the_weight(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two micro-batches of 4 in each of 8 steps, logged by the traced step, which takes the weight as an input. In the
    first step the gradient of alpha L_PG is alpha times as long as that of L_cls; dropout is drawn as in the step."""
    changes = {"train__accumulation": 2, "guidance__executor": "compiled"}
    steps, trainer = run(tmp_path, **changes)
    scales = trainer.progress.gradient_scales
    assert len(scales) == 3
    expected = [0.3 * math.prod(scales[:count]) ** (1 / count) for count in (1, 2, 3, 3, 3, 3, 3, 3)]
    assert [row["weight"] for row in steps] == pytest.approx(expected, rel=1e-3)
    assert len(set(expected)) == 3
    told = " ".join(capsys.readouterr().err.split())
    assert f"guidance.alpha_rule: the weight of L_PG is {expected[-1]:.4g} from step 3 on" in told
    assert "test_resnet: 0.37 million parameters" in told
    assert len(trainer.step.executor.steps) == 1  # no step is recorded anew for another weight
    newest = max((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert read_progress(newest).gradient_scales == scales


def test_measuring_looks_at_the_steps_that_training_then_takes(tmp_path: Path) -> None:
    """The epoch's row, of up to 16 samples, covers the whole batch of 8 here: its ratio is alpha in the first step."""
    run(tmp_path, tracking__gradients="true", train__max_steps=1)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (row,) = [line for line in lines if line["kind"] == "gradients"]
    assert row["gradient_ratio"] == pytest.approx(0.3, rel=1e-6)
    assert row["alpha"] == pytest.approx(0.3 * row["gradient_norm_cls"] / row["gradient_norm_guidance"])


def test_steps_that_are_not_guided_are_not_measured(tmp_path: Path) -> None:
    """Mixing starts in the second epoch (four steps each), every second step is guided: two of them, twice alpha."""
    steps, trainer = run(tmp_path, synthesis__start_epoch=1, guidance__every=2)
    assert len(trainer.progress.gradient_scales) == 2
    assert [row["loss_guidance"] > 0 for row in steps] == [False] * 4 + [True, False, True, False]
    assert steps[4]["weight"] == pytest.approx(2 * 0.3 * trainer.progress.gradient_scales[0], rel=1e-3)


def test_wrong_values_are_refused() -> None:
    with pytest.raises(UserError, match=r"guidance\.alpha_rule: is 'ratio', must be one of: fixed, gradient_ratio"):
        GuidanceOptions(alpha_rule="ratio")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"guidance\.alpha_steps: is 0, must be at least 1"):
        GuidanceOptions(alpha_steps=0)
