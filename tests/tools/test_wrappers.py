"""PyTorch's own wrappers around Eq. 1 by hand: which of them train as they should, as docs/performance.md says."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch.distributed as dist

from tools.benchmark.cases import Case
from tools.benchmark.compare_wrappers import REFERENCE, Found, started, table, verdict
from tools.benchmark.wrappers import WrapperProcess

CASE = Case("test_vit", 4, 160)


@pytest.fixture
def one_process() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def change(wrapper: str) -> np.ndarray | str:
    return WrapperProcess(wrapper).change(CASE, "hard")


@pytest.mark.parametrize(
    "wrapper",
    [
        "DDP",
        "DDP, static_graph, loss inside",
        "FSDP2, no reshard after the first backward",
        "FSDP2, blocks, no reshard after the first backward",
    ],
)
@pytest.mark.usefixtures("one_process")
def test_wrappers_that_train_as_gradients_averaged_by_hand_do(wrapper: str) -> None:
    found, expected = change(wrapper), change("gradients averaged by hand")
    assert not isinstance(found, str)
    assert not isinstance(expected, str)
    assert np.linalg.norm(expected) > 0
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)


@pytest.mark.usefixtures("one_process")
def test_fsdp2_as_it_is_fails() -> None:
    found = change("FSDP2")
    assert isinstance(found, str)
    assert found.startswith("fails: ")


@pytest.mark.slow
def test_a_static_graph_averages_too_early() -> None:
    """Only seen with two processes: there is nothing to average in one."""
    changes = []
    for wrapper in (REFERENCE, "DDP, static_graph"):
        with contextlib.ExitStack() as stack:
            changes.append(started(wrapper, stack).call("change", CASE, "hard")[0])
    assert verdict(changes[0], changes[0]) == "the same (0e+00)"
    assert verdict(changes[1], changes[0]).startswith("wrong by ")


def test_table_leaves_out_what_was_not_measured() -> None:
    rows = table([Found("vit", "DDP", "the same (0e+00)", 1.254, 700.4), Found("vit", "FSDP2", "fails: no data")])
    assert rows[1:] == [["vit", "DDP", "the same (0e+00)", "1.25", "700"], ["vit", "FSDP2", "fails: no data", "", ""]]
