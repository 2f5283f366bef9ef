"""Two processes, each on a GPU that computes nothing: DDP, FSDP2 and ZeRO, and what they send per optimizer step."""

from __future__ import annotations

import functools
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from null_gpu import run_on_null_gpu

pytestmark = pytest.mark.slow

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


ENGINES_OWN = {
    # DeepSpeed: an event before every backward pass and one after it, the norm of the gradients, overflow or not; once
    # every `steps_per_print` and in its timers the whole device.
    "zero1": {"cudaStreamSynchronize": 3, "cudaDeviceSynchronize": 2, "pageable copy to the device": 1},
    "zero2": {"cudaStreamSynchronize": 3, "cudaDeviceSynchronize": 2, "pageable copy to the device": 1},
    "zero3": {"cudaStreamSynchronize": 3, "cudaDeviceSynchronize": 2, "pageable copy to the device": 1},
    # Every gradient that goes to the host, and the stream on which they go.
    "zero2_offload": {"cudaStreamSynchronize": 37, "cudaDeviceSynchronize": 2, "cudaEventSynchronize": 1},
}
"""What an engine's library makes the host wait for, per optimizer step of this network; nothing in DDP and FSDP2."""


@pytest.mark.parametrize(("engine", "name"), CASES)
def test_only_deepspeed_makes_the_host_wait(engine: str, name: str) -> None:
    """But for the loss of the step before: one event."""
    found: dict[str, int] = {}
    for place, times in trained(engine)[name]["waits"].items():
        if "step_report.py" not in place:
            what, _, where = place.partition(": ")
            assert "zero.py" in where, place  # within a call of the engine's library
            found[what] = found.get(what, 0) + times
    allowed = ENGINES_OWN.get(engine, {})
    micro_batches = 2 if "accumulation" in name else 1
    assert all(times <= micro_batches * allowed.get(what, 0) for what, times in found.items()), found


PARAMETERS = 372_882
"""Elements of the network's parameters."""
STATISTICS = 2_088
"""Elements of its BatchNorm statistics."""


@pytest.mark.parametrize(("engine", "name"), CASES)
def test_what_is_sent_per_step(engine: str, name: str) -> None:
    """Gradients once, sharded ones per micro-batch; sharded parameters gathered per micro-batch; a report of 4 numbers.

    BatchNorm's statistics are averaged in every step, which an exact resume from any step needs: one all-reduce more.
    """
    step = trained(engine)[name]["steps"][-2]
    micro_batches = 2 if "accumulation" in name else 1
    print(engine, name, {key: step[key] for key in step if "reduce" in key or "gather" in key})
    if engine in MOVE_PARAMETERS:
        assert step["all-gather"] == micro_batches
        assert step["all-gather bytes"] <= micro_batches * 4 * (PARAMETERS // 2 + 1024)
        assert step["reduce-scatter"] == micro_batches
    if engine == "ddp":
        assert step["all-reduce"] <= 4
        assert step["all-reduce bytes"] <= 4 * (PARAMETERS + STATISTICS) + 64
