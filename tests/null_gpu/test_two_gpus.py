"""Two processes, each on a GPU that computes nothing: DDP, FSDP2 and ZeRO, and what they send per optimizer step."""

from __future__ import annotations

import functools
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from null_gpu import run_on_null_gpu

WORDS = [
    "--data.name=digits", "--data.image_size=32", "--data.batch_size=8",
    "--data.options={train: 32, edits: 16, test: 10}", "--model.name=test_resnet", "--synthesis.name=cutmix",
    "--guidance.alpha=0.01", "--train.epochs=3",
]  # fmt: skip
DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true"}
LAUNCH: dict[str, dict[str, str]] = {
    "ddp": {},
    "fsdp2": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
    **{name: DEEPSPEED | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": f"launch/{name}.json"}
       for name in ("zero1", "zero2", "zero3", "zero2_offload")},
}  # fmt: skip
OPTIONS = {
    "eager": "",
    "channels last": "--model.channels_last=true",
    "accumulation": "--train.accumulation=2",
    "cuda graph": "--guidance.executor=cuda_graph",
    "cuda graph, accumulation": "--guidance.executor=cuda_graph --train.accumulation=2",
}
MOVE_PARAMETERS = ("fsdp2", "zero3")


def names(engine: str) -> list[str]:
    """FSDP2 and ZeRO-3 refuse CUDA graphs (`tests/engine`); offloading is about memory, once is enough."""
    if engine == "zero2_offload":
        return ["eager"]
    return [name for name in OPTIONS if not (engine in MOVE_PARAMETERS and name.startswith("cuda graph"))]


@functools.cache
def trained(engine: str) -> dict[str, Any]:
    cases = [{"name": name, "words": [*WORDS, *OPTIONS[name].split()]} for name in names(engine)]
    with TemporaryDirectory() as folder:
        return run_on_null_gpu("train", cases, Path(folder), LAUNCH[engine], processes=2)


CASES = [(engine, name) for engine in LAUNCH for name in names(engine)]


@pytest.mark.parametrize(("engine", "name"), CASES)
def test_training_keeps_cudas_rules(engine: str, name: str) -> None:
    """NCCL's too: it takes contiguous tensors only."""
    found = trained(engine)[name]
    assert not found["error"]
    assert found["device"] == "cuda:0"
    assert found["cuda errors"] == 0
    assert not any("beside a capture" in step for step in found["steps"])
    assert found["memory"][-1] <= max(found["memory"][:6])


WAITS = {
    # The timers of PyTorch's DDP, in its first ten steps and every hundredth.
    "ddp": {"cudaEventSynchronize: distributed.py": 8},
    # DeepSpeed reads the gradient's norm and whether it overflowed, per step.
    "zero1": {"cudaStreamSynchronize: utils.py": 3, "pageable copy to the device: utils.py": 1},
    "zero2": {"cudaStreamSynchronize: utils.py": 3, "pageable copy to the device: utils.py": 1},
}
"""What libraries wait for per step, by their file: named here, so that a new one is seen."""


@pytest.mark.parametrize(("engine", "name"), CASES)
def test_only_libraries_wait(engine: str, name: str) -> None:
    """But for the loss of the step before."""
    waits = trained(engine)[name]["waits"]
    print(engine, name, waits)
