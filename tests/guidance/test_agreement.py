"""Two real processes that are given different reasons to end, end together and say the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from paths import ROOT


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each scenario of agreement_worker.py came to on rank 0 and rank 1."""
    folder = tmp_path_factory.mktemp("agreement")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "launch/cpu/ddp.yaml",
               str(ROOT / "tests" / "helpers" / "agreement_worker.py"), str(folder)]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def test_nan_of_one_rank_stops_both_before_the_update(ranks: list[dict[str, Any]]) -> None:
    """Rank 1's third batch has a NaN: both end with its step and its file names, step 2's checkpoint stays newest."""
    for result in (rank["nan"] for rank in ranks):
        assert result["code"] == 2
        assert "at step 3" in result["error"]
        assert "train-" in result["error"]
        assert result["checkpoints"][0] == "step-00000002"
    message = [rank["nan"]["error"].splitlines()[-1] for rank in ranks]
    assert message[0] == message[1]


def test_stop_signal_of_one_rank_stops_both_at_the_same_step(ranks: list[dict[str, Any]]) -> None:
    """SIGTERM reaches rank 1 alone in its second step: both stop after it, with a checkpoint, as a success."""
    for result in (rank["stop"] for rank in ranks):
        assert result["code"] == 0
        assert result["checkpoints"][0] == "step-00000002"


def test_different_configs_are_refused(ranks: list[dict[str, Any]]) -> None:
    for result in (rank["configs"] for rank in ranks):
        assert result["code"] == 2
        assert "different configs" in result["error"]
        assert result["checkpoints"] == []


def test_a_folder_one_rank_cannot_see_is_refused(ranks: list[dict[str, Any]]) -> None:
    for result in (rank["unshared"] for rank in ranks):
        assert result["code"] == 2
        assert "is not shared" in result["error"]
        assert result["checkpoints"] == []
