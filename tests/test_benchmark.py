"""The benchmark's arithmetic, its files, and that its hand-written loop computes what the package computes."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from provscale.guidance import GuidedStep

TOOLS = Path(__file__).parents[1] / "tools"


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(TOOLS))
    try:
        spec = importlib.util.spec_from_file_location("benchmark", TOOLS / "benchmark.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["benchmark"] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(TOOLS))
        sys.modules.pop("benchmark", None)


def test_summaries_and_ratios(benchmark):
    """Quartiles of 1..5 are 2, 3, 4 (inclusive method)."""
    timing = benchmark.summarise([5.0, 1.0, 4.0, 2.0, 3.0])
    assert (timing.low, timing.median, timing.high) == (2.0, 3.0, 4.0)
    assert benchmark.summarise([4.0, 2.0]).median == 3.0
    row = benchmark.Row("net", 1, 8, "hard", "eager", "no", 2.0, {
        name: benchmark.Timing(value, value, value, None) for name, value in [("plain", 2.0), ("guided", 5.0)]
    })  # fmt: skip
    assert row.ratio("guided", "plain") == 2.5


@pytest.mark.parametrize("soft", [True, False])
def test_the_hand_written_loop_has_the_steps_gradients(benchmark, soft, monkeypatch):
    case = benchmark.Case("test_resnet", 2, 32)
    torch.manual_seed(0)
    network = benchmark.build(case).train()
    other = copy.deepcopy(network)
    sample = benchmark.make_sample(case, soft, torch.device("cpu"))
    for module in (network, other):
        monkeypatch.setattr(module, "zero_grad", lambda set_to_none: None)
    benchmark.hand_arm(network, sample, None)()
    GuidedStep(other, benchmark.ALPHA)(sample)["loss"].backward()
    for mine, theirs in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-5)


def test_a_run_writes_table_json_picture_and_document(benchmark, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "QUICK", [benchmark.Case("test_resnet", 2, 32)])
    document = tmp_path / "performance.md"
    document.write_text("before\n<!-- measured -->\nold\n<!-- /measured -->\nafter\n")
    arguments = ["--quick", "--device", "cpu", "--rounds", "2", "--labels", "hard", "--executors", "eager",
                 "--out", str(tmp_path), "--doc", str(document)]  # fmt: skip
    assert benchmark.main(arguments) == 0
    content = json.loads((tmp_path / "quick-cpu.json").read_text())
    (row,) = content["rows"]
    assert row["floor"] == 2.0
    assert set(row["times"]) == {"plain eager", "plain", "guided", "by hand"}
    assert all(timing["low"] <= timing["median"] <= timing["high"] for timing in row["times"].values())
    assert content["about"]["torch"] == torch.__version__
    assert 1000 < (tmp_path / "quick-cpu.svg").stat().st_size < 100_000
    text = document.read_text()
    assert text.startswith("before")
    assert text.endswith("after\n")
    assert "test_resnet" in text
    assert "old" not in text
    assert "test_resnet" in capsys.readouterr().out


def test_unknown_names_are_one_line(benchmark, capsys):
    assert benchmark.main(["--quick", "--device", "cpu", "--executors", "egaer", "--backbones", "deit"]) == 2
    assert "did you mean 'eager'" in capsys.readouterr().err
    assert benchmark.main(["--quick", "--device", "cpu", "--backbones", "nothing"]) == 2
    assert "--backbones" in capsys.readouterr().err
