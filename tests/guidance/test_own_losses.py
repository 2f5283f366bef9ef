"""Losses that a network brings along are added to Eq. 1, and arrive by name wherever the others do."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from networks import LossesOfItsOwn, losses_of_its_own, random_sample
from torch import nn

from provscale.errors import UserError
from provscale.guidance.executors.compiled import CompiledExecutor
from provscale.guidance.executors.cuda_graph import RecordingExecutor, RerunRecording
from provscale.guidance.loss import classification_loss, guidance_loss
from provscale.guidance.step import GuidedStep
from provscale.models import MODELS
from provscale.train import main

ALPHA = 0.5
NAMES = ["loss", "loss_cls", "loss_guidance", "loss_size", "loss_spread"]
MAKERS = {
    "traced": lambda: CompiledExecutor("eager"),
    "compiled": lambda: CompiledExecutor("aot_eager"),
    "recorded": lambda: RecordingExecutor(None, RerunRecording),
    "recorded compiled": lambda: RecordingExecutor(CompiledExecutor("eager"), RerunRecording),
}


@pytest.mark.parametrize("alpha", [0.0, ALPHA])
def test_the_loss_is_the_sum_of_all(alpha: float) -> None:
    """Expected: the same terms, written out with plain autograd in float64."""
    network, sample = losses_of_its_own().double(), random_sample(2, 32)
    sample.inputs, sample.provenance_mask = sample.inputs.double(), sample.provenance_mask.double()
    sample.mixing_weight = sample.mixing_weight.double()
    step = GuidedStep(copy.deepcopy(network), alpha)
    losses = step(sample)
    assert list(losses) == NAMES
    losses["loss"].backward()
    inputs = sample.inputs.requires_grad_()
    logits, own = network(inputs)
    expected = classification_loss(logits, sample) + own["loss_size"] + own["loss_spread"]
    if alpha:
        expected = expected + alpha * guidance_loss(logits, inputs, sample)
    expected.backward()
    torch.testing.assert_close(losses["loss"].detach(), expected.detach(), rtol=1e-12, atol=0)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(step.network.get_parameter(name).grad, parameter.grad, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("maker", MAKERS)
def test_every_executor_carries_them(maker: str) -> None:
    network, sample = losses_of_its_own(), random_sample(1, 32)
    eager, other = GuidedStep(copy.deepcopy(network), ALPHA), GuidedStep(network, ALPHA)
    other.executor = MAKERS[maker]()
    for _ in range(2):  # the second is a replay
        expected, found = eager(sample), other(sample)
        assert list(found) == NAMES
        for name in NAMES:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=0)
        expected["loss"].backward()
        found["loss"].backward()
    for mine, theirs in zip(other.network.parameters(), eager.network.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=1e-7)


def test_a_split_batch_adds_up_to_the_whole_one() -> None:
    """Both own losses are means over the batch's samples, so the parts' shares add up."""
    sample = random_sample(1, 32, batch=6, real=(0, 4))
    whole, parts = (GuidedStep(losses_of_its_own(), ALPHA, split_batch=split)(sample) for split in (False, True))
    for name in NAMES:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"area": torch.zeros(())}, "'area' of shape"),
        ({"loss_area": torch.zeros(2)}, r"'loss_area' of shape \(2,\)"),
        ({"loss_cls": torch.zeros(())}, "'loss_cls'"),
    ],
)
def test_losses_that_cannot_be_told_apart_are_refused(own: dict[str, torch.Tensor], message: str) -> None:
    class Odd(nn.Linear):
        def forward(self, inputs: torch.Tensor):  # type: ignore[override]
            return super().forward(inputs.flatten(1)), own

    with pytest.raises(UserError, match=message):
        GuidedStep(Odd(3 * 16 * 16, 5), 0.0)(random_sample())


def test_a_run_logs_them_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(num_classes: int) -> nn.Module:
        network = LossesOfItsOwn()
        network.head = nn.Linear(8, num_classes)
        return network

    monkeypatch.setitem(MODELS._entries, "own_losses", build)
    arguments = [
        "--data.name=digits", "--data.image_size=32", "--data.batch_size=8", "--model.name=own_losses",
        "--data.options={train: 16, edits: 8, test: 10}", "--synthesis.name=cutmix", "--guidance.alpha=0.1",
        "--train.epochs=1", "--tracking.wandb=disabled", "--tracking.images=0",
        "--evaluation.metrics=[group_accuracy]", f"--run.dir={tmp_path}",
    ]  # fmt: skip
    assert main(arguments) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["kind"] == "train"]
    assert len(steps) == 2
    for row in steps:
        parts = row["loss_cls"] + 0.1 * row["loss_guidance"] + row["loss_size"] + row["loss_spread"]
        assert row["loss"] == pytest.approx(parts, rel=1e-6)
        assert row["loss_size"] > 0 > row["loss_spread"]
