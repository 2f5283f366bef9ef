"""The guided step as Inductor and Triton compile it for CUDA: code and binaries, nothing of which is run."""

from __future__ import annotations

from pathlib import Path

import pytest
from null_gpu.compile_report import compile_step

from tools.benchmark.cases import Case

pytestmark = pytest.mark.slow


def test_a_step_compiles_to_binaries_of_fewer_kernels(tmp_path: Path) -> None:
    """Two convolutions with BatchNorm, whose double backward is among them."""
    found = compile_step(Case("small_cnn", 4, 16), "hard", "no", tmp_path)
    print(found)
    assert found["compiled warnings"] == []
    assert found["cubins"] > 0
    assert found["compiled kernels"] < 0.6 * found["eager kernels"]
