"""The benchmark's arithmetic, its files, and that its hand-written loop computes what the package computes."""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import time

import pytest
import torch

from provscale.errors import UserError
from provscale.guidance.step import GuidedStep

MODULES = {
    name: importlib.import_module(f"tools.benchmark.{name}")
    for name in ("__main__", "budget", "cases", "engines", "goals", "memory", "tables", "timing", "roofline")
}


@pytest.fixture(scope="module")
def tools():
    """The benchmark's modules by name."""
    return MODULES


@pytest.fixture
def benchmark(tools, monkeypatch):
    """The entry point with one tiny case."""
    case = tools["__main__"].Case("test_resnet", 4, 32)
    monkeypatch.setattr(tools["__main__"], "QUICK", [case])
    monkeypatch.setattr(tools["__main__"], "QUICK_ENGINES", [(case, "soft", "no")])
    return tools["__main__"]


def test_summaries_and_ratios(tools):
    """Quartiles of 1..5 are 2, 3, 4 (inclusive method)."""
    timing = tools["timing"].summarise([0.005, 0.001, 0.004, 0.002, 0.003])
    assert (timing.low, timing.median, timing.high) == pytest.approx((2.0, 3.0, 4.0))
    assert tools["timing"].summarise([0.004, 0.002]).median == pytest.approx(3.0)
    report = tools["tables"]
    times = {name: report.Timing(value, value, value) for name, value in [("plain", 2.0), ("guided", 5.0)]}
    row = report.Row("net", "1 x 8 px", "hard", "", "eager", "no", 2.0, {**times, "by hand": "fails: IndexError"})
    assert row.ratio("guided", "plain") == 2.5
    assert row.ratio("guided", "by hand") is None


def test_goals_are_judged_from_the_rows(tools):
    """Guided / plain 3.1 is 1.03 floors of 3, 3.3 is 1.10; 12 ms eager are 4 times 3 ms recorded. Only networks bound
    by launches have a goal of graphs, and without an eager row there is nothing to compare with."""
    report = tools["tables"]

    def row(backbone, executor, plain, guided):
        times = {name: report.Timing(ms, ms, ms) for name, ms in [("plain", plain), ("guided", guided)]}
        return report.Row(
            backbone, "1 x 8 px", "soft", "", executor, "bf16", 3.0, {**times, "by hand": "out of memory"}
        )

    table = tools["goals"].goals_table(
        [row("skp", "eager", 4, 12), row("skp", "cuda_graph", 1, 3.1), row("resnet50", "cuda_graph", 1, 3.3),
         row("deit", "eager", 1, 3), row("deit", "cuda_graph", 1, 3)]
    )  # fmt: skip
    assert [line[5:] for line in table[1:]] == [
        ["3.00", "1.00, reached", "-", "-"],
        ["3.10", "1.03, reached", "-", "3.87, reached"],
        ["3.30", "1.10, missed", "-", "-"],
        ["3.00", "1.00, reached", "-", "-"],
        ["3.00", "1.00, reached", "-", "1.00, missed"],
    ]


def test_what_does_not_fit_or_fails_is_left_out_and_named(tools, capsys):
    """An alarm ends a measurement in its middle, also one that catches every exception; later ones are not begun."""
    budget = tools["budget"].Budget(0.3 / 60)

    def stubborn():
        while True:
            with contextlib.suppress(Exception):
                time.sleep(0.05)

    assert budget.take("one", lambda number: number + 1, 1) == 2
    assert budget.take("broken", lambda: 1 / 0) is None
    assert budget.take("endless", stubborn) is None
    assert budget.take("late", lambda: 1) is None
    assert budget.left_out == [
        "broken (ZeroDivisionError: division by zero)", "endless (ended by the limit of time)", "late (no time left)",
    ]  # fmt: skip
    with pytest.raises(UserError, match="some measurements failed"):
        budget.close()
    assert "left out: late" in capsys.readouterr().out
    with pytest.raises(ZeroDivisionError):
        tools["budget"].Budget(None).take("broken", lambda: 1 / 0)


@pytest.mark.parametrize("label", ["hard", "soft", "hard, 1 of 4 synthetic"])
@pytest.mark.parametrize("name", ["test_resnet", "skp", "deit_small_sat"])
def test_the_hand_written_loop_has_the_steps_gradients(tools, name, label):
    cases = tools["cases"]
    case = cases.Case(name, 4, 32)
    torch.manual_seed(0)
    network = cases.build(case).train()
    other = copy.deepcopy(network)
    sample = cases.make_sample(case, label, torch.device("cpu"))
    torch.manual_seed(1)  # drop path
    cases.hand_loss(network, sample, None).backward()
    torch.manual_seed(1)
    GuidedStep(other, cases.ALPHA)(sample)["loss"].backward()
    for mine, theirs in zip(network.parameters(), other.parameters(), strict=True):
        scale = max(float(theirs.grad.abs().max()), 1e-5)
        torch.testing.assert_close(mine.grad / scale, theirs.grad / scale, rtol=0, atol=2e-3)


def test_a_run_writes_table_json_picture_and_document(benchmark, tmp_path, capsys):
    document = tmp_path / "performance.md"
    document.write_text("before\n<!-- measured -->\nold\n<!-- /measured -->\nafter\n")
    arguments = ["--quick", "--device", "cpu", "--rounds", "2", "--labels", "hard",
                 "--parts", "step", "--out", str(tmp_path), "--doc", str(document)]  # fmt: skip
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
    assert "over the floor" in capsys.readouterr().out


def test_a_run_without_time_is_whole_and_lists_everything(benchmark, tmp_path, capsys):
    """As at the end of a lent GPU's minutes; SKP before DeiT because it was named first."""
    arguments = ["--quick", "--device", "cpu", "--labels", "soft", "--minutes", "0", "--out", str(tmp_path), "--parts",
                 "step", "memory"]  # fmt: skip
    assert benchmark.main(arguments) == 0
    content = json.loads((tmp_path / "quick-cpu.json").read_text())
    assert content["rows"] == []
    assert content["about"]["left_out"][0] == "test_resnet, soft, no, eager (no time left)"
    assert "left out: memory: test_resnet, soft, no, by hand (no time left)" in capsys.readouterr().out
    cases = importlib.import_module("tools.benchmark.cases").FULL
    assert [case.backbone for case in benchmark.chosen(cases, ["skp", "patch16"])] == ["skp", "deit_small_patch16_224"]


def test_another_batch_has_files_of_its_own(benchmark, tmp_path):
    arguments = ["--quick", "--device", "cpu", "--rounds", "1", "--labels", "soft", "--parts", "step", "--batch", "2",
                 "--out", str(tmp_path)]  # fmt: skip
    assert benchmark.main(arguments) == 0
    (row,) = json.loads((tmp_path / "quick-cpu-batch-2.json").read_text())["rows"]
    assert (row["backbone"], row["shape"]) == ("test_resnet", "2 x 32 px")


def test_the_roofline_counts_the_floors_operations(benchmark, tmp_path):
    """Counted by PyTorch's formulas: a guided step has 2 (hard) or 3 (soft) times a plain step's FLOP, and the first
    layer's input gradients on top, which a plain step skips: of one, or two passes over 5 % of this network."""
    arguments = ["--quick", "--device", "cpu", "--rounds", "1", "--labels", "hard", "soft", "--parts", "roofline",
                 "--out", str(tmp_path)]  # fmt: skip
    assert benchmark.main(arguments) == 0
    content = json.loads((tmp_path / "roofline-quick-cpu.json").read_text())
    flop = {(row["label"], row["kind"]): row["flop"] for row in content["rows"]}
    for label, floor in (("hard", 2), ("soft", 3)):
        assert floor <= flop[label, "guided"] / flop[label, "plain"] < floor * 1.06
    assert content["about"]["machine"]["no"] > content["about"]["machine"]["GB/s"] > 0
    assert (tmp_path / "roofline-quick-cpu.svg").stat().st_size > 1000


def test_flop_and_bytes_of_one_product(tools):
    """[4, 8] x [8, 16]: 2 x 4 x 8 x 16 FLOP; 32 + 128 + 64 floats. A view moves nothing."""
    left, right = torch.ones(4, 8), torch.ones(8, 16)
    with tools["roofline"].Work() as work:
        (left @ right).view(-1)
    assert (work.flop, work.moved) == (1024, 4 * 224)


@pytest.mark.slow
def test_whole_steps_under_engines(benchmark, tmp_path):
    arguments = ["--quick", "--device", "cpu", "--rounds", "1", "--parts", "engines", "--engines", "one", "ddp",
                 "--out", str(tmp_path)]  # fmt: skip
    assert benchmark.main(arguments) == 0
    rows = json.loads((tmp_path / "engines-quick-cpu.json").read_text())["rows"]
    assert [row["engine"] for row in rows] == ["one, 1 process", "ddp, 2 processes"]
    for row in rows:
        assert all(timing["median"] > 0 for timing in row["times"].values())


def test_an_arm_with_other_weights_is_named(tools, monkeypatch):
    """The check that stands before an engine's arms: half the penalty is not the method, an exception no result."""
    engines, cases = tools["engines"], tools["cases"]
    arguments = (cases.Case("test_resnet", 2, 32), "hard", "eager", "no")
    assert engines.Server().verdict("by hand", *arguments) == ""
    assert engines.Server().verdict("plain, eager", *arguments) == ""

    def half(network, sample, dtype):
        return (cases.plain_loss(network, sample, dtype) + cases.hand_loss(network, sample, dtype)) / 2

    monkeypatch.setitem(engines.LOSSES, "by hand", half)
    assert engines.Server().verdict("by hand", *arguments).startswith("wrong by")
    monkeypatch.setitem(engines.LOSSES, "by hand", lambda *_: next(iter([])))
    assert engines.Server().verdict("by hand", *arguments) == "fails: StopIteration"


def test_processes_that_cannot_start_are_one_line(tools, monkeypatch):
    engines = tools["engines"]
    with engines.EngineProcesses("none", on_cuda=False) as processes, pytest.raises(UserError, match="did not start"):
        processes.connect()


def test_the_largest_batch_is_found(tools):
    """Peaks of 10 + 3 b fit 100 up to b = 30; a jump at 20, as of a library's workspace, ends there."""
    largest = tools["memory"].largest_batch
    low, high = largest(lambda batch: 10 + 3 * batch, 4, 22.0, 100.0)
    assert low <= 30 < high <= low + max(1, low // 10)
    low, high = largest(lambda batch: 10 + 3 * batch + 1000 * (batch >= 20), 4, 22.0, 100.0)
    assert low < 20 <= high <= low + max(1, low // 10)
    assert largest(lambda batch: float("inf"), 4, float("inf"), 100.0)[0] < 4


@pytest.mark.slow
def test_a_guided_step_needs_more_memory_than_a_plain_one(tools):
    case = tools["cases"].Case("resnet18", 8, 64)
    peaks = [tools["memory"].measured(case, "soft", arm, "no", "cpu") for arm in ("plain eager", "guided, eager")]
    assert 1.2 * peaks[0] < peaks[1] < 10 * peaks[0]


def test_unknown_names_are_one_line(tools, capsys):
    main = tools["__main__"].main
    assert main(["--quick", "--device", "cpu", "--executors", "egaer", "--backbones", "deit"]) == 2
    assert "did you mean 'eager'" in capsys.readouterr().err
    assert main(["--quick", "--device", "cpu", "--backbones", "nothing"]) == 2
    assert "--backbones" in capsys.readouterr().err
