"""A run from the command line to the files it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from paths import ROOT
from safetensors.torch import load_file
from tiny_runs import arguments, rows, same, train
from torchvision.transforms import v2

from provscale.command_line import parse
from provscale.config import DataConfig
from provscale.data import build_splits
from provscale.data.loader import LoadedItems, make_loader
from provscale.data.plan import BatchPlan, evaluation_batches
from provscale.data.transforms import ItemTransform
from provscale.engine import Engine
from provscale.evaluation.run import evaluate
from provscale.guidance.step import GuidedStep
from provscale.models import build_model
from provscale.optim import build_optimizer
from provscale.sample import Sample
from provscale.synthesis import Synthesis


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished run, with W&B offline and pictures."""
    return train(tmp_path_factory.mktemp("train"), tracking__wandb="offline", tracking__images=2)


def test_metrics_file(run: Path) -> None:
    """32 samples, batch 8, 2 epochs: 8 training rows, a validation row after steps 4 and 8; L = L_cls + a L_PG."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    training = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in training] == list(range(1, 9))
    assert [line["epoch"] for line in training] == [1] * 4 + [2] * 4
    for line in training:
        assert {"loss", "loss_cls", "loss_guidance", "lr", "samples_per_second"} <= line.keys()
        assert line["loss"] == pytest.approx(line["loss_cls"] + 0.01 * line["loss_guidance"], rel=1e-5)
        assert line["loss_guidance"] > 0
        assert line["samples_per_second"] > 0
    evaluations = [line for line in lines if line["kind"] == "validation"]
    assert [(line["epoch"], line["step"]) for line in evaluations] == [(1, 4), (2, 8)]
    assert all({"accuracy", "worst_group"} <= line.keys() for line in evaluations)
    assert {line["split"] for line in evaluations} == {"validation"}
    assert [line["kind"] for line in lines[10:]] == ["test"] * 2
    assert {line["at"] for line in lines[10:]} == {"best", "last"}


def test_summary(run: Path) -> None:
    """The best epoch is the first that has the highest worst-group accuracy on validation in metrics.jsonl."""
    summary = json.loads((run / "summary.json").read_text())
    evaluations = [row for row in rows(run) if row["kind"] == "validation"]
    best = max(evaluations, key=lambda row: (row["worst_group"], -row["epoch"]))
    assert summary["best_epoch"] == best["epoch"]
    assert summary["selected_on"] == "validation"
    assert {"accuracy", "worst_group"} <= summary["validation"].keys()
    assert summary["validation"].items() <= best.items()
    tested = {row["at"]: row for row in rows(run) if row["kind"] == "test"}
    assert (tested["best"]["epoch"], tested["last"]["epoch"]) == (best["epoch"], 2)
    for at in ("best", "last"):
        assert {"accuracy", "worst_group"} <= summary["test"][at].keys()
        assert summary["test"][at].items() <= tested[at].items()
    assert summary["wall_seconds"] > 0
    assert summary["world_size"] == 1
    network = timm.create_model("test_resnet", num_classes=2)
    assert summary["parameters"] == sum(parameter.numel() for parameter in network.parameters())
    assert {"torch", "timm", "accelerate", "python"} <= summary["environment"].keys()


def test_config_file_parses_to_the_same_config(run: Path) -> None:
    words = arguments(run.parent, tracking__wandb="offline", tracking__images=2)
    assert parse(["--cfg", str(run / "config.yaml")]) == parse(words)


def test_weights_load_strictly_into_a_plain_timm_model(run: Path) -> None:
    for name in ("final.safetensors", "best.safetensors"):
        network = timm.create_model("test_resnet", num_classes=2)
        network.load_state_dict(load_file(run / "checkpoints" / name), strict=True)


def test_no_leftovers(run: Path) -> None:
    assert not [path for path in run.rglob(".*") if path.name.startswith((".saving", ".config", ".summary"))]


@pytest.mark.slow
def test_the_commands_as_commands(run: Path, tmp_path: Path) -> None:
    """Started as scripts from another folder, by their path."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(script: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, str(ROOT / script), *words], cwd=tmp_path, env=environment,
                              capture_output=True, text=True, check=False)  # fmt: skip

    trained = start("provscale/train.py", *arguments(tmp_path, train__max_steps=2))
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "run" / "report.html").exists()
    page = start("tools/report.py", str(tmp_path / "run"), str(run), "--out", "page.html")
    assert page.returncode == 0, page.stderr
    assert (tmp_path / "page.html").exists()
    mistake = start("provscale/train.py", "--optim.lr=x")
    assert mistake.returncode == 2
    assert mistake.stderr == "provscale: optim.lr: is 'x', must be a finite number\n"


def test_loader_processes_change_nothing() -> None:
    """Random crops included: order and content come from keys, not from who loads."""
    splits = build_splits(DataConfig(name="digits", image_size=32, options={"train": 12, "edits": 4, "test": 4}), 0)
    crop = ItemTransform(v2.Compose([v2.RandomResizedCrop([32, 32]), v2.RandomHorizontalFlip()]))
    items = LoadedItems(splits.train, Synthesis().prepare, crop, 2, seed=3)
    keys = [[(1, index) for index in (5, 2, 9)], [(1, index) for index in (0, 11)], [(2, 5)]]
    alone, again, workers = (list(make_loader(items, keys, number, False)) for number in (0, 0, 2))
    assert [sample.index.tolist() for sample in workers] == [[5, 2, 9], [0, 11], [5]]
    for other in (again, workers):
        for first, second in zip(alone, other, strict=True):
            assert torch.equal(first.inputs, second.inputs)
            assert torch.equal(first.targets, second.targets)
    assert not torch.equal(alone[0].inputs[0], alone[2].inputs[0]), "another epoch draws another crop"


def test_accumulation_equals_one_large_batch(tmp_path: Path) -> None:
    """A network whose samples do not interact; CutMix partners come from the whole global batch. 1e-6 relative."""
    common = {"model__name": "test_vit", "model__options": "{img_size: 32}", "optim__lr": 0.01, "train__epochs": 1,
              "train__max_steps": 3}  # fmt: skip
    whole = train(tmp_path, "whole", **common)
    for chunks in (2, 8):
        parts = train(tmp_path, f"parts{chunks}", **common, train__accumulation=chunks)
        states = [load_file(run / "checkpoints" / "final.safetensors") for run in (whole, parts)]
        first, second = (torch.cat([state[name].double().flatten() for name in states[0]]) for state in states)
        assert float((first - second).norm() / first.norm()) < 1e-6
        for one, other in zip(rows(whole), rows(parts), strict=True):
            if one["kind"] == "train":
                assert one["loss"] == pytest.approx(other["loss"], rel=1e-6)
                assert one["loss_guidance"] == pytest.approx(other["loss_guidance"], rel=1e-5)


def test_seed_decides_everything(tmp_path: Path) -> None:
    runs = [train(tmp_path, str(seed), seed=seed // 2, train__max_steps=2) for seed in range(3)]
    states = [load_file(run / "checkpoints" / "final.safetensors") for run in runs]
    assert same(states[0], states[1])
    assert not same(states[0], states[2])


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_every_sample_is_evaluated_once(world_size: int, batch_size: int) -> None:
    """Whatever 7 samples, processes and batches leave over; and all processes run equally many forward passes."""
    parts = [evaluation_batches(7, batch_size, rank, world_size) for rank in range(world_size)]
    counted = [index for part in parts for indices, counting in part for index in indices[:counting]]
    assert sorted(counted) == list(range(7))
    assert len({tuple(len(indices) for indices, _ in part) for part in parts}) == 1


def test_evaluation_does_not_depend_on_batch_size(tmp_path: Path) -> None:
    """Against accuracy counted by hand over all 7 test samples at once."""
    config = parse([*arguments(tmp_path), "--data.options={train: 4, edits: 4, test: 7}"])
    splits = build_splits(config.data, 0)
    network = build_model(config.model, 2).network
    engine = Engine(config)
    engine.prepare(GuidedStep(network, 0.0), build_optimizer(network.named_parameters(), frozenset(), config.optim))
    items = [splits.evaluation_transform(splits.test[index]) for index in range(7)]
    network.eval()
    with torch.no_grad():
        predicted = network(torch.stack([item.inputs for item in items])).argmax(dim=1).tolist()
    expected = 100 * sum(answer == item.target for answer, item in zip(predicted, items, strict=True)) / 7
    splits = replace(splits, metrics=("group_accuracy",))
    for batch_size in (1, 3, 7, 100):
        config.evaluation.batch_size = batch_size
        assert evaluate(engine, splits, "test", config)["accuracy"] == pytest.approx(expected)


def test_last_short_batch(tmp_path: Path) -> None:
    """32 samples in batches of 12: two full ones an epoch, or three with the rest of 8."""
    dropped = train(tmp_path, "dropped", data__batch_size=12, train__epochs=1)
    kept = train(tmp_path, "kept", data__batch_size=12, train__epochs=1, data__drop_last="false",
                 train__accumulation=4)  # fmt: skip
    assert [sum(row["kind"] == "train" for row in rows(run)) for run in (dropped, kept)] == [2, 3]


def test_an_epoch_visits_every_sample_once_on_any_number_of_processes() -> None:
    for world_size, accumulation in ((1, 1), (2, 1), (2, 2), (4, 1)):
        plans = [BatchPlan(24, 8, 0, rank, world_size, accumulation) for rank in range(world_size)]
        seen = [index for plan in plans for micro in plan.micro_batches(0) for index in micro.indices[: micro.size]]
        assert sorted(seen) == list(range(24))


def test_evaluation_every_second_epoch_and_at_the_end(tmp_path: Path) -> None:
    run = train(tmp_path, train__epochs=3, evaluation__every_epochs=2)
    assert [row["epoch"] for row in rows(run) if row["kind"] == "validation"] == [2, 3]


def test_baseline_arm_computes_no_guidance(tmp_path: Path) -> None:
    assert all(row["loss_guidance"] == 0 for row in rows(train(tmp_path, guidance__alpha=0)) if row["kind"] == "train")


def test_public_names_are_those_of_the_package() -> None:
    import provscale

    assert all(isinstance(getattr(provscale, name), Callable) for name in provscale.__all__)  # type: ignore[arg-type]
    assert provscale.Sample is Sample
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = provscale.nothing
