"""Runs in a process whose CUDA is the null GPU: `worker.py TASK ARGUMENTS FOLDER`; see `run_on_null_gpu`.

What decides by values that were computed is switched off by name in `values_mean_nothing`, and nothing else.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import json
import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

NULL = ctypes.CDLL(os.environ["LD_PRELOAD"])
NULL.nullgpu_counters.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
LISTENER = ctypes.CFUNCTYPE(None, ctypes.c_char_p)


def counters() -> dict[str, int]:
    text = ctypes.create_string_buffer(1 << 16)
    NULL.nullgpu_counters(text, len(text))
    return {name: int(number) for name, number in (line.split("\t") for line in text.value.decode().splitlines())}


def reset() -> None:
    NULL.nullgpu_reset()


@contextmanager
def waits_and_pageable_copies(found: Counter[str]) -> Iterator[None]:
    """Counts, by the lines of Python they come from, calls that make the host wait and copies from pageable memory."""

    @LISTENER
    def listen(what: bytes) -> None:
        frames = [frame for frame in traceback.extract_stack()[:-1] if "null_gpu" not in frame.filename]
        ours = [frame for frame in frames if f"{os.sep}provscale{os.sep}" in frame.filename][-3:]
        shown = [*reversed(ours)] if frames[-1] in ours else [frames[-1], *reversed(ours)]
        lines = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in shown)
        found[f"{what.decode()}: {lines}"] += 1

    NULL.nullgpu_listen(listen)
    try:
        yield
    finally:
        NULL.nullgpu_listen(None)


def replace(owner: Any, name: str, value: Any) -> None:
    assert hasattr(owner, name), f"{owner} has no {name} any more"
    setattr(owner, name, value)


def values_mean_nothing() -> None:
    """Switches off what decides by computed numbers, and lets Python objects travel between processes by gloo."""
    import provscale.guidance.self_check as self_check
    import provscale.guidance.step as step
    import provscale.run.checkpoint as checkpoint
    import provscale.run.step_report as step_report

    read = step_report.Readout.read
    replace(step_report.Readout, "read", lambda self: [0.0 for _ in read(self)])
    replace(checkpoint, "all_finite", lambda network: True)
    replace(self_check, "relative_difference", lambda found, expected: 0.0)
    predict = step.predict

    def zeros(*arguments: Any) -> dict[str, torch.Tensor]:
        found = predict(*arguments)
        return {name: torch.zeros(value.shape, dtype=value.dtype).to(value.device) for name, value in found.items()}

    replace(step, "predict", zeros)
    replace(torch.Tensor, "isfinite", lambda self: torch.ones(self.shape, dtype=torch.bool))
    replace(torch, "isnan", lambda tensor: torch.zeros(tensor.shape, dtype=torch.bool))
    # The null cuDNN has convolutions, no plans of attention.
    torch.backends.cuda.enable_cudnn_sdp(False)
    replace(torch._tensor_str, "_str", lambda self, *, tensor_contents=None: f"tensor{tuple(self.shape)}")
    if "WORLD_SIZE" not in os.environ:
        return
    import torch.distributed.distributed_c10d as c10d
    import torch.nn.parallel.distributed as ddp

    replace(ddp, "_verify_param_shape_across_processes", lambda *arguments, **options: None)
    new_group = functools.cache(lambda: c10d.new_group(backend="gloo"))

    def over_gloo(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            options.pop("device", None)
            return original(*arguments, **options | {"group": new_group()})

        return call

    for name in ("all_gather_object", "broadcast_object_list", "gather_object", "scatter_object_list"):
        function = over_gloo(getattr(c10d, name))
        replace(c10d, name, function)
        replace(dist, name, function)
    if os.environ.get("ACCELERATE_USE_DEEPSPEED"):
        import deepspeed.runtime.zero.partitioned_param_coordinator as coordinator
        import deepspeed.runtime.zero.stage_1_and_2 as stages
        import deepspeed.runtime.zero.utils as zero_utils

        # Offloaded gradients are the one thing that is computed with, on the CPU.
        norm = "complete_grad_norm_calculation_for_cpu_offload"
        replace(stages.DeepSpeedZeroOptimizer, norm, lambda self, parameters: torch.zeros(()))

        for module in (coordinator, zero_utils):
            replace(module, "assert_ints_same_as_other_ranks", lambda *arguments: None)


# ---- tasks -----------------------------------------------------------------------------------------------------------
def train(cases: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Whole trainings, one after the other; see `train_one` for what each leaves.

    Args:
        cases: name, words of the command line, and whether to resume the run once more (`again`).
    """
    return {case["name"]: train_one(case, folder / case["name"].replace(" ", "-")) for case in cases}


def train_one(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Counters of every optimizer step, the memory after it, what waited and where; `error` if it failed."""
    from accelerate.state import AcceleratorState, GradientState

    from provscale.command_line import parse
    from provscale.trainer import Trainer

    result: dict[str, Any] = {"steps": [], "memory": [], "waits": {}, "error": ""}
    reset()
    for _ in range(2 if case.get("again") else 1):
        waits: Counter[str] = Counter()
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        try:
            trainer = Trainer(parse([*case["words"], f"--run.dir={folder}", "--tracking.wandb=disabled"]))
            result["device"] = str(trainer.engine.device)
            observe(trainer, result, waits)
            trainer.fit()
        except Exception as error:
            traceback.print_exc()
            result["error"] = f"{type(error).__name__}: {str(error)[:600]}"
            break
        finally:
            trainer = None
            gc.collect()
            torch.cuda.empty_cache()
    result["cuda errors"] = counters().get("error", 0) + sum(step.get("error", 0) for step in result["steps"])
    return result


def observe(trainer: Any, result: dict[str, Any], waits: Counter[str]) -> None:
    """Notes what happens inside each of the trainer's optimizer steps."""
    original = trainer.optimizer_step

    def step(*arguments: Any) -> None:
        before = counters().get("error", 0)
        reset()
        here: Counter[str] = Counter()
        with waits_and_pageable_copies(here):
            original(*arguments)
        found = counters()
        found["error"] = found.get("error", 0) + before
        result["steps"].append(found)
        result["memory"].append(torch.cuda.memory_allocated())
        waits.update(here)
        result["waits"] = here  # of the last step
        reset()

    trainer.optimizer_step = step


def rules(_: Any, folder: Path) -> dict[str, Any]:
    """What breaks a rule of CUDA's, by name: the exception's text, and the counters after it."""
    return {name: broken(action) for name, action in RULES.items()}


def broken(action: Callable[[], Any]) -> dict[str, Any]:
    reset()
    text = ""
    try:
        action()
    except Exception as error:
        text = f"{type(error).__name__}: {str(error)[:300]}"
    torch.cuda.synchronize()
    return {"error": text, "counters": counters()}


def in_capture(action: Callable[[torch.Tensor], Any]) -> None:
    tensor = torch.ones(4, device="cuda")
    torch.cuda.synchronize()
    reset()
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        action(tensor)


def recorded_network_that_waits() -> None:
    from networks import random_sample, small_cnn

    from provscale.guidance.step import GuidedStep

    network = small_cnn().cuda()
    network.register_forward_hook(lambda module, inputs, outputs: outputs * float(outputs.sum()))
    GuidedStep(network, 0.5, executor="cuda_graph")(random_sample(2).to("cuda"))


def waits_for_what_is_outside() -> None:
    event = torch.cuda.Event()
    event.record()
    in_capture(lambda tensor: torch.cuda.current_stream().wait_event(event))


RULES: dict[str, Callable[[], Any]] = {
    "a legal capture": lambda: in_capture(lambda tensor: tensor.mul_(2)),
    "reading a number": lambda: in_capture(lambda tensor: tensor.sum().item()),
    "waiting for the device": lambda: in_capture(lambda tensor: torch.cuda.synchronize()),
    "a pageable copy": lambda: in_capture(lambda tensor: tensor.copy_(torch.ones(4), non_blocking=True)),
    "an event from outside": waits_for_what_is_outside,
    "too much memory": lambda: torch.empty(81 << 30, dtype=torch.uint8, device="cuda"),
    "a number read outside": lambda: torch.ones(4, device="cuda").sum().item(),
    "a recorded network that waits": recorded_network_that_waits,
}


def compiled(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Kernels of a guided step, eager and compiled for CUDA, and what compiling it left in Inductor's cache.

    Args:
        case: fields of `tools.benchmark.cases.Case`, whose backbone may be `small_cnn`, `label` and `precision`.
    """
    import time
    import warnings

    from networks import CLASSES, small_cnn

    from provscale.guidance.step import GuidedStep
    from tools.benchmark.cases import ALPHA, Case, build, make_sample

    label, precision = case.pop("label"), case.pop("precision")
    small = case["backbone"] == "small_cnn"
    network = (small_cnn() if small else build(Case(**case))).cuda().train()
    sample = make_sample(Case(**case), label, torch.device("cpu"))
    if small:
        sample.targets %= CLASSES
    sample = sample.to("cuda")
    found: dict[str, Any] = {}
    for executor in ("eager", "compiled"):
        step = GuidedStep(network, ALPHA, precision=precision, executor=executor)
        started = time.perf_counter()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            step(sample)["loss"].backward()
        found[f"{executor} seconds"] = time.perf_counter() - started
        found[f"{executor} warnings"] = [str(line.message) for line in said if line.category is RuntimeWarning]
        reset()
        step(sample)["loss"].backward()
        torch.cuda.synchronize()
        found[f"{executor} kernels"] = counters().get("kernel", 0)
    cache = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    binaries = {path.stem for path in cache.rglob("*.cubin")}
    found |= {"cubins": len(binaries), "ptx": len({path.stem for path in cache.rglob("*.ptx")})}
    found["architecture"] = "sm_{}{}".format(*torch.cuda.get_device_capability())
    return found


TASKS: dict[str, Callable[[Any, Path], Any]] = {"train": train, "rules": rules, "compiled": compiled}

if __name__ == "__main__":
    if sys.argv[1] != "compiled":  # a compiler traces what this would replace
        values_mean_nothing()
    made = Path(sys.argv[3])
    outcome = TASKS[sys.argv[1]](json.loads(sys.argv[2]), made)
    if int(os.environ.get("RANK", "0")) == 0:
        (made / "result.json").write_text(json.dumps(outcome))
    sys.stdout.flush()
    sys.stderr.flush()
    # Not the interpreter's own end: libraries tear down what this device never made.
    os._exit(0)
