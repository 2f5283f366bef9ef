"""Guidance's options reach training through the config."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from provscale.command_line import parse
from provscale.guidance.executors.compiled import CompiledExecutor
from provscale.trainer import Trainer

BASE = [
    "--data.name", "digits", "--data.image_size", "32", "--data.batch_size", "4",
    "--data.options", "{train: 16, edits: 4, validation: 4, test: 4}", "--model.name", "test_resnet",
    "--guidance.alpha", "0.01",
    "--train.epochs", "1", "--train.max_steps", "4", "--tracking.wandb", "disabled", "--tracking.images", "0",
]  # fmt: skip


def train(folder: Path, *arguments: str) -> list[dict[str, float]]:
    config = parse([*BASE, "--run.dir", str(folder), *arguments])
    trainer = Trainer(config)
    if config.guidance.executor == "compiled":
        trainer.step.executor = CompiledExecutor("eager")  # the traced graph without minutes of Inductor
    trainer.fit()
    rows = [json.loads(line) for line in (folder / config.run.name / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "train"]


@pytest.mark.parametrize("term", ["sample", "batch"])
def test_every_second_step_is_guided_twice_as_strongly(tmp_path, term):
    """CutMix makes every sample synthetic; L = L_cls + 2 alpha L_PG in steps 1 and 3, L_cls in steps 2 and 4."""
    rows = train(tmp_path, "--synthesis.name", "cutmix", "--guidance.every", "2", "--guidance.sampled_term", term)
    for number, row in enumerate(rows):
        assert (row["loss_guidance"] > 0) == (number % 2 == 0)
        assert row["loss"] == pytest.approx(row["loss_cls"] + 0.02 * row["loss_guidance"], rel=1e-5)


def test_recomputing_and_compiling_train_as_eager_does(tmp_path):
    expected = train(tmp_path, "--synthesis.name", "cutmix", "--run.name", "plain")
    for name, option in (
        ("recomputed", ["--train.checkpoint_activations", "true"]),
        ("compiled", ["--guidance.executor", "compiled"]),
    ):
        found = train(tmp_path, "--synthesis.name", "cutmix", "--run.name", name, *option)
        for mine, theirs in zip(found, expected, strict=True):
            assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
            assert mine["loss_guidance"] == pytest.approx(theirs["loss_guidance"], rel=1e-3)


def test_mixing_starts_at_its_epoch(tmp_path):
    """Four steps per epoch: the first epoch's samples stay as they are, so nothing is guided there."""
    rows = train(tmp_path, "--synthesis.name", "cutmix", "--synthesis.start_epoch", "1", "--train.epochs", "2",
                 "--train.max_steps", "8")  # fmt: skip
    assert [row["loss_guidance"] > 0 for row in rows] == [False] * 4 + [True] * 4


def test_the_gradients_of_both_losses_are_logged_every_epoch(tmp_path):
    """At the first step that mixes: alpha times the ratio of their lengths says whether guidance is felt."""
    train(tmp_path, "--synthesis.name", "cutmix", "--train.epochs", "2", "--train.max_steps", "8")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = [line for line in lines if line["kind"] == "gradients"]
    assert [(line["step"], line["epoch"]) for line in found] == [(1, 1), (5, 2)]
    for line in found:
        expected = 0.01 * line["gradient_norm_guidance"] / line["gradient_norm_cls"]
        assert line["gradient_ratio"] == pytest.approx(expected)
        assert expected > 0


def test_gradients_are_looked_at_where_a_batch_is_mixed(tmp_path):
    """Half of the batches are mixed: the row is that of an epoch's first guided step; a resume inside adds none."""
    words = ["--synthesis.name", "cutmix", "--synthesis.probability", "0.5", "--train.epochs", "3",
             "--train.max_steps", "12"]  # fmt: skip
    rows = train(tmp_path, *words)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = [line["step"] for line in lines if line["kind"] == "gradients"]
    guided = [row["step"] for row in rows if row["loss_guidance"] > 0]
    firsts = [next((step for step in guided if (step - 1) // 4 == epoch), None) for epoch in range(3)]
    assert found == [step for step in firsts if step is not None]
    assert len(found) >= 2
    assert any((step - 1) % 4 for step in guided)


def test_looking_at_gradients_changes_nothing(tmp_path):
    words = ["--synthesis.name", "cutmix", "--model.options", "{drop_rate: 0.3}"]
    looked = train(tmp_path, *words, "--run.name", "looked")
    plain = train(tmp_path, *words, "--run.name", "plain", "--tracking.gradients", "false")
    assert [row["loss"] for row in looked] == [row["loss"] for row in plain]
