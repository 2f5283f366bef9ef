"""The null GPU itself: it refuses what CUDA refuses, and counts what it should."""

from __future__ import annotations

import functools
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from null_gpu import run_on_null_gpu


@functools.cache
def found() -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        return run_on_null_gpu("rules", None, Path(folder))


def test_a_legal_capture_is_recorded() -> None:
    legal = found()["a legal capture"]
    assert not legal["error"]
    assert legal["counters"]["capture"] == 1
    assert legal["counters"]["recorded kernel"] == legal["counters"]["graph nodes"] == 1
    assert "error" not in legal["counters"]


@pytest.mark.parametrize("name", ["reading a number", "waiting for the device", "an event from outside"])
def test_a_capture_is_broken_by(name: str) -> None:
    assert found()[name]["error"]
    assert found()[name]["counters"]["error"] >= 1


def test_pytorch_itself_refuses_a_pageable_copy_in_a_capture() -> None:
    assert "non-blocking" in found()["a pageable copy"]["error"] or "pinned" in found()["a pageable copy"]["error"]


def test_memory_ends_at_80_gib() -> None:
    assert found()["too much memory"]["error"].startswith("OutOfMemoryError")


def test_a_number_that_is_read_is_a_wait() -> None:
    counters = found()["a number read outside"]["counters"]
    assert counters["pinned copy to the host"] == 1
    assert counters["cudaStreamSynchronize"] == 1


def test_a_network_that_cannot_be_recorded_is_a_users_error() -> None:
    """One line that says what to set."""
    error = found()["a recorded network that waits"]["error"]
    assert error.startswith("UserError: guidance.executor: the step cannot be recorded as a CUDA graph")
    assert error.endswith("set it to eager")
