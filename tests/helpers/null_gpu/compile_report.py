"""Compiles the guided step of each backbone for CUDA, without a GPU, and writes the table of docs/benchmarks/README.md.

    PYTHONPATH=.:tests/helpers python tests/helpers/null_gpu/compile_report.py --doc docs/benchmarks/README.md

Inductor and Triton generate code and Triton's assembler makes binaries of it; nothing of it is run.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from null_gpu import run_on_null_gpu
from provscale.files import markdown_table, update_document
from tools.benchmark.__main__ import chosen
from tools.benchmark.cases import QUICK, Case

HEADINGS = ("backbone", "labels", "precision", "kernels, eager", "compiled", "binaries", "first step, s", "what failed")


def compile_step(case: Case, label: str, precision: str, folder: Path, timeout: float = 1800) -> dict[str, Any]:
    """What `worker.py`'s `compiled` returns; its caches are in `folder`, so that nothing is there before."""
    words = {**asdict(case), "label": label, "precision": precision}
    launch = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "cache"), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    found: dict[str, Any] = run_on_null_gpu("compiled", words, folder, launch, timeout=timeout)
    return found


def cells(case: Case, label: str, precision: str) -> list[str]:
    with TemporaryDirectory() as folder:
        try:
            found = compile_step(case, label, precision, Path(folder))
        except AssertionError as error:  # the worker's end, with what it wrote last
            return [case.backbone, label, precision, "", "", "", "", str(error).strip().splitlines()[-1]]
    kernels = [str(found[f"{executor} kernels"]) for executor in ("eager", "compiled")]
    seconds = f"{found['compiled seconds']:.0f}"
    binaries = f"{found['cubins']} ({found['architecture']})"
    return [case.backbone, label, precision, *kernels, binaries, seconds, "; ".join(found["compiled warnings"])]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", help="words that the backbones' names contain (default: all)")
    parser.add_argument("--label", default="soft")
    parser.add_argument("--precision", default="bf16", choices=["no", "bf16"])
    parser.add_argument("--doc", type=Path, help="Markdown file whose measured table is replaced")
    options = parser.parse_args(arguments)
    rows = [list(HEADINGS)]
    for case in chosen(QUICK, options.backbones):
        rows.append(cells(case, options.label, options.precision))
        print(" | ".join(rows[-1]), flush=True)
    if options.doc is not None:
        update_document(options.doc, markdown_table(rows), "measured compiled for CUDA")


if __name__ == "__main__":
    main()
