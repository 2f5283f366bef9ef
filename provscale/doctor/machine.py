"""Accelerators, processes, SLURM and disk."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from provscale.doctor.finding import Finding, output_of

FREE_GB = 10
"""Below this a run of Table 8 with its checkpoints may not fit: three of VGG16 with momentum have 0.5 GB."""


def torch_cuda() -> str | None:
    """The CUDA version that PyTorch was built for, without importing it; None for a CPU-only build."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    text = (Path(spec.origin).parent / "version.py").read_text()
    found = re.search(r"^cuda\b.*=\s*['\"]([\d.]+)['\"]", text, flags=re.MULTILINE)
    return found.group(1) if found else None


def gpus() -> Iterator[Finding]:
    """NVIDIA GPUs, and whether this PyTorch can use them; PyTorch is imported only where there are some."""
    built, listed = torch_cuda(), output_of("nvidia-smi", "--query-gpu=name,memory.total,driver_version",
                                            "--format=csv,noheader")  # fmt: skip
    if not listed:
        yield Finding("warning", "GPU", f"none (nvidia-smi lists none); training runs on {os.cpu_count()} CPU cores")
        yield Finding("ok", "processes", "several on CPUs talk over gloo (launch/cpu/)")
        return
    cards = listed.splitlines()
    yield Finding("ok", "GPU", f"{len(cards)} x {cards[0]}; PyTorch is built for CUDA {built}")
    driver = re.search(r"CUDA Version: (\d+)\.(\d+)", output_of("nvidia-smi") or "")
    if built is None:
        yield Finding("missing", "CUDA", "PyTorch is a CPU-only build: the GPUs stay unused",
                      "install torch from its CUDA index (pytorch.org, Get started)", required=True)  # fmt: skip
        return
    if driver and int(driver.group(1)) < int(built.split(".")[0]):
        yield Finding("missing", "CUDA", f"the driver knows CUDA {'.'.join(driver.groups())}, PyTorch needs {built}",
                      "update the driver, or install a torch built for an older CUDA", required=True)  # fmt: skip
        return
    import torch

    if torch.cuda.is_available():
        nccl = ".".join(map(str, torch.cuda.nccl.version()))
        yield Finding("ok", "CUDA", f"PyTorch sees {torch.cuda.device_count()} GPUs")
        yield Finding("ok", "processes", f"several on GPUs talk over NCCL {nccl}")
    else:
        yield Finding("missing", "CUDA", "PyTorch sees no GPU although there are some",
                      "look at CUDA_VISIBLE_DEVICES, and at python -c 'import torch; torch.zeros(1).cuda()'",
                      required=True)  # fmt: skip


def network() -> Iterator[Finding]:
    """Whether this host's name leads to an address that others can reach."""
    name = socket.gethostname()
    fix = "for several nodes: export NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME (docs/clusters.md)"
    try:
        address = socket.gethostbyname(name)
    except OSError:
        yield Finding("warning", "network", f"the host's name {name} has no address", fix)
        return
    if address.startswith("127."):
        yield Finding(
            "warning", "network", f"the host's name {name} leads to {address}, which no other node reaches", fix
        )
    else:
        yield Finding("ok", "network", f"{name} is {address}")


def slurm() -> Iterator[Finding]:
    """SLURM's commands, and whether its controller answers."""
    lacking = [name for name in ("sbatch", "srun", "scontrol") if shutil.which(name) is None]
    if lacking:
        yield Finding("missing", "SLURM", f"{', '.join(lacking)} not found: slurm/*.sh need a cluster's login node")
    elif output_of("scontrol", "ping") is None:
        yield Finding("warning", "SLURM", "its commands are here, but no controller answers", "scontrol ping")
    else:
        yield Finding("ok", "SLURM", output_of("sbatch", "--version") or "")


def disk(runs: Path) -> Iterator[Finding]:
    """Space and permission where run folders go."""
    there = runs.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free / 1e9
    if not os.access(there, os.W_OK):
        yield Finding(
            "missing", "disk", f"{there} cannot be written", "give another folder: --run.dir DIR", required=True
        )
    elif free < FREE_GB:
        yield Finding("warning", "disk", f"{free:.1f} GB free for {runs}, a paper's run may need {FREE_GB}",
                      "--run.dir DIR on another disk, or --checkpoint.keep 1")  # fmt: skip
    else:
        yield Finding("ok", "disk", f"{free:.0f} GB free for {runs}")
