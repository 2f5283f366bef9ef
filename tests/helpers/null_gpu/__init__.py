"""A GPU that computes nothing and keeps CUDA's rules: what the first run on a cluster would meet, on any machine.

`run_on_null_gpu` starts Python with a CUDA runtime, driver, cuBLAS, cuDNN and NCCL in the place of NVIDIA's. Memory is
host memory, kernels do nothing, NCCL's processes exchange nothing; streams, events and captures keep their rules
(stream capture modes, the legacy stream, isolation, merges, stale events, pageable copies) and everything is counted.

It shows control flow: devices that do not match, work beside a capture, synchronisation, copies, launches, calls of
NCCL, memory. It does not show numbers (memory holds what it held), time, or what cuBLAS, cuDNN and NCCL themselves
refuse beyond their arguments' presence; a capture on it may still fail on a device in ways that only these libraries
know.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

from null_gpu.build import build, missing

WORKER = ROOT / "tests" / "helpers" / "null_gpu" / "worker.py"


def environment(devices: int) -> dict[str, str]:
    """Variables that put the null GPU in place. Skips the test, with the reason, where it cannot be built."""
    if reason := missing():
        pytest.skip(reason)
    folder = build()
    libraries = os.pathsep.join(filter(None, [str(folder), os.environ.get("LD_LIBRARY_PATH", "")]))
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE", "CUDA", "DS_"))},
        "LD_PRELOAD": str(folder / "libnullgpu.so"),
        "LD_LIBRARY_PATH": libraries,
        "TRITON_LIBCUDA_PATH": str(folder),
        "NULL_GPU_DEVICES": str(devices),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers"), str(ROOT / "tests" / "guidance")]),
        "OMP_NUM_THREADS": "1",
    }


def run_on_null_gpu(task: str, arguments: Any, folder: Path, launch: dict[str, str] | None = None, processes: int = 1,
                    timeout: float = 900) -> Any:  # fmt: skip
    """What `worker.py`'s function `task` returns for `arguments`, from the main process; both go as JSON.

    Args:
        folder: for the worker's files.
        launch: variables that `accelerate launch` would set.
        processes: of which each has a null GPU of its own.
    """
    common = environment(processes) | (launch or {})
    if processes > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        size = str(processes)
        common |= {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = []
    for rank in range(processes):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
        output = (folder / f"output-{rank}.txt").open("w")
        command = [sys.executable, str(WORKER), task, json.dumps(arguments), str(folder)]
        started.append(subprocess.Popen(command, cwd=ROOT, env=common | own, stdout=output, stderr=output))
    try:
        codes = [process.wait(timeout) for process in started]
    finally:
        for process in started:
            process.kill()
    texts = [(folder / f"output-{rank}.txt").read_text()[-6000:] for rank in range(processes)]
    assert codes == [0] * processes, f"exit codes {codes}\n" + "\n".join(texts)
    return json.loads((folder / "result.json").read_text())
