"""Whole trainings on a GPU that computes nothing: every synthesis, executor and option, on one device.

Budgets are per optimizer step, once everything is warm. What a budget is exceeded by is named with its line.
"""

from __future__ import annotations

import functools
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from null_gpu import run_on_null_gpu

pytestmark = pytest.mark.slow

IMAGES = [
    "--data.name=digits", "--data.image_size=32", "--data.batch_size=8", "--data.drop_last=false",
    "--data.options={train: 20, edits: 16, test: 10}", "--model.name=test_resnet",
    "--guidance.alpha=0.01", "--train.epochs=3",
]  # fmt: skip
SKELETONS = [
    "--data.name=planted_actions", "--data.batch_size=6", "--data.options={train: 24, test: 6, people: 3, bias: 0.5, "
    "frames: 8, persons: 6}", "--synthesis.name=batchmix", "--model.name=skp", "--guidance.alpha=0.01",
    "--train.epochs=3", "--model.options={width: 16, missing: masked}",
]  # fmt: skip
OPTIONS = {
    "cutmix": "--synthesis.name=cutmix",
    "cutmix in bf16": "--synthesis.name=cutmix --train.precision=bf16",
    "resizemix": "--synthesis.name=resizemix",
    "edits": "--synthesis.name=edited",
    "edits in bf16": "--synthesis.name=edited --train.precision=bf16",
    "not every batch mixed": "--synthesis.name=cutmix --synthesis.probability=0.5",
    "accumulation": "--synthesis.name=cutmix --train.accumulation=2 --data.batch_size=4",
    "random mask": "--synthesis.name=cutmix --guidance.mask=random",
    "alpha every second step": "--synthesis.name=cutmix --guidance.every=2",
    "one term per sample": "--synthesis.name=cutmix --guidance.sampled_term=sample",
    "AdamW, clipping, class weights": "--synthesis.name=cutmix --optim.name=adamw --optim.clip_norm=1 "
    "--optim.class_weights=inverse_frequency",
    "workers and pinned memory": "--synthesis.name=cutmix --data.workers=1",
    "channels last": "--synthesis.name=cutmix --model.channels_last=true --train.precision=bf16",
    "vision transformer": "--synthesis.name=cutmix --model.name=test_vit --train.precision=bf16 "
    "--evaluation.metrics=[group_accuracy]",
    "VGG16": "--synthesis.name=cutmix --model.name=vgg16_cam",
    "DeiT-S": "--synthesis.name=cutmix --model.name=deit_small_sat --train.precision=bf16",
    "ResNet-50": "--synthesis.name=edited --model.name=resnet50 --train.precision=bf16 --model.channels_last=true",
    "pictures": "--synthesis.name=cutmix --tracking.images=2",
    "baseline": "--synthesis.name=cutmix --guidance.alpha=0",
}
SIDE_32 = '{"img_size": 32}'
TEXTS = {"dropout": '{"drop_rate": 0.2, "drop_path_rate": 0.2}', "vision transformer": SIDE_32, "DeiT-S": SIDE_32}
EAGER_ONLY = {
    "recomputed activations": "--synthesis.name=cutmix --train.checkpoint_activations=true",
}
EXECUTORS = ("eager", "cuda_graph")


def words(name: str, executor: str) -> list[str]:
    options = {**OPTIONS, **EAGER_ONLY}.get(name, "--synthesis.name=cutmix")
    base = SKELETONS if name == "skeletons" else [*IMAGES, *options.split()]
    model = [f"--model.options={TEXTS[name]}"] if name in TEXTS else []
    return [*base, *model, f"--guidance.executor={executor}"]


def names(executor: str) -> list[str]:
    return [*OPTIONS, "dropout", "skeletons", *(EAGER_ONLY if executor == "eager" else []), "resumed"]


@functools.cache
def trained(executor: str) -> dict[str, Any]:
    """Every case's training, in one process."""
    cases = [{"name": name, "words": words(name, executor), "again": name == "resumed"} for name in names(executor)]
    with TemporaryDirectory() as folder:
        return run_on_null_gpu("train", cases, Path(folder))


CASES = [(executor, name) for executor in EXECUTORS for name in names(executor)]


@pytest.mark.parametrize(("executor", "name"), CASES)
def test_training_keeps_cudas_rules(executor: str, name: str) -> None:
    """Runs to its end, on the GPU, without an error of CUDA's and with nothing launched beside a capture."""
    found = trained(executor)[name]
    assert not found["error"]
    assert found["device"].startswith("cuda")
    assert found["cuda errors"] == 0
    assert not any("beside a capture" in step for step in found["steps"])


@pytest.mark.parametrize(("executor", "name"), CASES)
def test_nothing_in_a_step_makes_the_host_wait(executor: str, name: str) -> None:
    """But for the loss of the step before. No copy leaves from pageable memory, for which the host may wait too."""
    waits = dict(trained(executor)[name]["waits"])
    read = [place for place in waits if place.startswith("cudaEventSynchronize") and "step_report.py" in place]
    assert sum(waits.pop(place) for place in read) <= 1
    assert not waits


@pytest.mark.parametrize(("executor", "name"), CASES)
def test_memory_does_not_grow(executor: str, name: str) -> None:
    """From the second epoch, in which every shape has been seen, to the last."""
    memory = trained(executor)[name]["memory"]
    if name != "pictures":  # what is drawn from them is not the step's
        assert max(memory[-3:]) <= max(memory[: len(memory) - 3])
    assert trained(executor)[name]["steps"][-1].get("cudaMalloc", 0) == 0


@pytest.mark.parametrize("name", [name for name in names("cuda_graph") if name != "baseline"])
def test_a_replay_is_one_launch(name: str) -> None:
    """Beside it: the batch's synthesis, copies into and out of the recording, the carrier, optimizer and report.

    At most 100 launches and 30 small copies (150 and 60 with two micro-batches), whatever the network.
    """
    micro_batches = 2 if name == "accumulation" else 1
    recorded, eager = trained("cuda_graph")[name]["steps"], trained("eager")[name]["steps"]
    last = recorded[-1]
    print(name, {key: (eager[-1].get(key, 0), last.get(key, 0)) for key in ("kernel", "graph launch")})
    assert last["graph launch"] == micro_batches
    assert last["kernel"] <= 50 + 50 * micro_batches
    assert last.get("copy on the device", 0) <= 30 * micro_batches
    # A short batch and a batch of another kind are recordings of their own; nothing is recorded twice.
    assert sum(step.get("capture", 0) for step in recorded[6:]) == 0
