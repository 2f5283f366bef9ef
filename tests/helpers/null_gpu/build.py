"""Builds the null GPU's two libraries from the sources beside this file.

Headers come from the nvidia and triton packages that PyTorch's CUDA wheel depends on. What PyTorch's libraries still
leave undefined becomes a function that returns success, so that a new PyTorch takes no more than a new build.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import site
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch

HERE = Path(__file__).parent
RUNTIME = ("streams", "memory", "device", "libraries", "nccl")
TORCH_LIBRARIES = ("torch_cuda", "c10_cuda", "torch_cuda_linalg", "torch_nvshmem", "torch_python")
WANTED = re.compile(r"^(cuda|__cuda|cublas|cudnn|cufft|cusolver|cusparse|nccl)")
COMPUTES = re.compile(r"^cublas(?!Lt|Set|Get|Create|Destroy)|^cudnn\w*(Forward|Backward)(?!.*(Size|Workspace))")
"""Library calls that launch a kernel; their first argument is the handle."""
DRIVER_NAMES = re.findall(
    r"\w+",
    """
    cuCtxGetLimit cuCtxSetLimit cuDevicePrimaryCtxRelease_v2 cuGetProcAddress_v2 cuGraphKernelNodeGetParams_v2
    cuLinkAddData_v2 cuLinkComplete cuLinkCreate_v2 cuMemAddressFree cuMemAddressReserve cuMemCreate
    cuMemExportToShareableHandle cuMemGetAllocationGranularity cuMemImportFromShareableHandle cuMemMap cuMemRelease
    cuMemSetAccess cuMemUnmap cuMemcpyDtoHAsync_v2 cuMulticastBindMem cuMulticastCreate cuMulticastUnbind
    cuStreamIsCapturing cuStreamWriteValue32_v2 cuStreamWriteValue64_v2 cuTensorMapEncodeIm2col cuTensorMapEncodeTiled
    """,
)
"""Functions of the driver that PyTorch looks up when it starts, and that are not called here."""


def missing() -> str:
    """Why the null GPU cannot be built here; empty if it can."""
    tools = [tool for tool in ("g++", "nm") if shutil.which(tool) is None]
    if tools:
        return f"needs a C++ compiler and binutils, not found: {', '.join(tools)}"
    if torch.version.cuda is None:
        return f"needs PyTorch's CUDA wheel, installed is {torch.__version__}"
    if not includes():
        return "needs the headers of the nvidia-* packages, which are not installed"
    return ""


def includes() -> list[Path]:
    """Folders with the headers of CUDA, NCCL, cuDNN and Triton's copy of CUDA's internal ones; empty if some lack."""
    places = [Path(place) for place in site.getsitepackages()]
    folders = [folder for place in places for folder in sorted(place.glob("nvidia/*/include"))]
    triton = find_spec("triton")
    if triton is not None and triton.origin is not None:
        folders.append(Path(triton.origin).parent / "backends" / "nvidia" / "include")
    found = {header for header in ("cuda_runtime_api.h", "nccl.h", "cudnn.h", "cublas_v2.h", "crt/host_defines.h")
             if any((folder / header).is_file() for folder in folders)}  # fmt: skip
    return folders if len(found) == 5 else []


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed:\n{done.stderr[-4000:]}")
    return done.stdout


def symbols(folder: Path, *options: object) -> set[str]:
    """Names that `nm` lists, without their versions."""
    return {line.split()[-1].partition("@")[0] for line in run("nm", *options, cwd=folder).splitlines() if line.split()}


def stubs(folder: Path) -> tuple[str, str]:
    """C sources of what remains: of the runtime with its libraries, and of the driver."""
    libraries = Path(torch.__file__).parent / "lib"
    names = [libraries / f"lib{name}.so" for name in TORCH_LIBRARIES if (libraries / f"lib{name}.so").is_file()]
    wanted = {name for name in symbols(folder, "-D", "--undefined-only", *names) if WANTED.match(name)}
    rest = sorted(wanted - symbols(folder, "--defined-only", *(f"{name}.o" for name in RUNTIME)))
    head = '#define EXPORT __attribute__((visibility("default")))\nint nullgpu_on_handle(void*);\n'
    bodies = (
        f"EXPORT int {name}(void* handle) {{ return nullgpu_on_handle(handle); }}"
        if COMPUTES.match(name)
        else f"EXPORT int {name}(void) {{ return 0; }}"
        for name in rest
    )
    driver = (f"EXPORT int {name}(void) {{ return 0; }}" for name in DRIVER_NAMES)
    return head + "\n".join(bodies) + "\n", head + "\n".join(driver) + "\n"


def compile_into(folder: Path) -> None:
    flags = ["-O1", "-fPIC", "-fvisibility=hidden", "-w", *(f"-I{path}" for path in includes())]
    for name in (*RUNTIME, "driver"):
        run("g++", "-std=c++17", *flags, "-c", HERE / f"{name}.cpp", "-o", f"{name}.o", cwd=folder)
    for name, source in zip(("runtime_stubs", "driver_stubs"), stubs(folder), strict=True):
        (folder / f"{name}.c").write_text(source)
        run("gcc", *flags, "-c", f"{name}.c", "-o", f"{name}.o", cwd=folder)
    objects = [f"{name}.o" for name in (*RUNTIME, "runtime_stubs")]
    run("g++", "-shared", "-o", "libnullgpu.so", *objects, "-ldl", "-lpthread", cwd=folder)
    run("g++", "-shared", "-Wl,-soname,libcuda.so.1", "-o", "libcuda.so.1", "driver.o", "driver_stubs.o", "-ldl",
        cwd=folder)  # fmt: skip


def build() -> Path:
    """The folder with libnullgpu.so and libcuda.so.1, built once for these sources and this PyTorch."""
    sources = b"".join(path.read_bytes() for path in sorted(HERE.glob("*")) if path.is_file())
    digest = hashlib.sha256(sources + f"{torch.__version__} {torch.__file__}".encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"provscale-null-gpu-{os.getuid()}-{digest}"
    if not (folder / "libcuda.so.1").is_file():
        # Aside, then renamed: tests run in several processes, and the first to finish wins.
        aside = Path(tempfile.mkdtemp(prefix="provscale-null-gpu-"))
        compile_into(aside)
        try:
            aside.rename(folder)
        except OSError:
            shutil.rmtree(aside)
    return folder
