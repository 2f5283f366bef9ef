"""All engines train the same network: real engines on two CPU processes, started by `accelerate launch`."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_runs import ENGINES, environment, finished, result, run, scratch
from engine_worker import CASES, UNIT_ROUNDOFF, skeleton, training_set
from paths import ROOT
from safetensors.torch import load_file

from provscale import evaluate as evaluate_entry
from provscale.run.checkpoint_folder import damage, newest_first

TOLERANCE = 1e-5
SHARDED = ("zero1", "zero2", "zero3", "fsdp2")


def trained(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without BatchNorm statistics: two processes average theirs, one process sees one chunk after the other."""
    return {
        name: value.double() for name, value in state.items() if "running" not in name and "num_batches" not in name
    }


def difference(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """Largest relative difference of a loss, or of a parameter tensor by its norm."""
    losses = [
        abs(mine[name] - theirs[name]) / abs(theirs[name])
        for mine, theirs in zip(found["losses"], expected["losses"], strict=True)
        for name in {**mine, **theirs}
    ]
    return max(*losses, weight_difference(found["network"], expected["network"]))


def weight_difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    assert found.keys() == expected.keys()
    mine, theirs = trained(found), trained(expected)
    return max(float((mine[name] - theirs[name]).norm() / theirs[name].norm()) for name in theirs)


@pytest.mark.parametrize("engine", ENGINES)
def test_losses_and_parameters_equal_one_process(engine: str) -> None:
    """Six networks, two with two losses of their own, hard and soft labels, SGD and AdamW, rates that change every
    step, with and without accumulation.

    The reference is one process that accumulates over the same chunks.
    """
    found, expected = result(engine, "parity"), result("one", "parity")
    worst = {case: difference(found[case], expected[case]) for case in CASES}
    print(engine, {model: max(value for case, value in worst.items() if case[0] == model) for model, *_ in CASES})
    assert max(worst.values()) < TOLERANCE, worst
    for case in CASES:
        own = {"own losses": {"loss_size", "loss_spread"}, "sat": {"loss_area", "loss_norm"}}.get(case[0], set())
        assert {*found[case]["losses"][0]} == {"loss", "loss_cls", "loss_guidance", *own}
        assert found[case]["shapes"] == expected[case]["shapes"]
        shapes = {name: list(value.shape) for name, value in found[case]["network"].items()}
        assert shapes == found[case]["shapes"]


@pytest.mark.parametrize("engine", SHARDED)
def test_buffers_and_predictions_equal_ddp(engine: str) -> None:
    found, expected = result(engine, "parity"), result("ddp", "parity")
    for case in CASES:
        for name, value in expected[case]["network"].items():
            torch.testing.assert_close(found[case]["network"][name], value, rtol=TOLERANCE, atol=1e-6)
    for name, value in expected["predicted"].items():
        torch.testing.assert_close(found["predicted"][name], value, rtol=1e-4, atol=1e-6)
    assert found["again"] == pytest.approx(expected["again"], rel=TOLERANCE)


@pytest.mark.parametrize("engine", ENGINES)
def test_channels_last_on_several_processes(engine: str) -> None:
    """The same losses, saved and loaded; ZeRO and FSDP2 store weights their own way and ignore the layout."""
    found, expected = result(engine, "channels_last"), result("one", "parity")["cnn", 1, 1]
    for mine, theirs in zip(found["losses"], expected["losses"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    for name, value in found["network"].items():
        assert value.is_contiguous(), name


@pytest.mark.parametrize("engine", ["one", *ENGINES])
def test_self_check_leaves_no_trace(engine: str) -> None:
    """The same bits as without it, also in the accumulation that follows."""
    for accumulation, checked in result(engine, "checked").items():
        plain = result(engine, "parity")["cnn", 2, accumulation]
        assert checked["losses"] == plain["losses"]
        assert all(torch.equal(checked["network"][name], value) for name, value in plain["network"].items())


@pytest.mark.parametrize("engine", ENGINES)
def test_split_batches_equal_whole_ones(engine: str) -> None:
    """The reference is one process whose step takes its chunks as they are."""
    for case, found in result(engine, "split").items():
        assert difference(found, result("one", "parity")[case]) < TOLERANCE


@pytest.mark.parametrize("engine", ENGINES)
def test_clipping_is_the_configs(engine: str) -> None:
    """With clip_norm 1 all engines clip the whole gradient alike, and it matters: the norm is above 1."""
    found, expected = result(engine, "clipped")[1.0], result("one", "clipped")[1.0]
    assert difference(found, expected) < TOLERANCE
    assert difference(found, result("one", "parity")["cnn", 1, 2]) > 1e-3


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_are_equally_long(engine: str) -> None:
    """Both processes have the same numbers, from which `guidance.alpha_rule` chooses a weight, and one process has them
    too, within rounding."""
    for case, found in result(engine, "lengths").items():
        (expected,) = result("one", "lengths")[case]
        assert found[0] == found[1]
        assert found[0] == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("engine", ["zero1", "zero2", "zero3"])
def test_deepspeeds_default_clipping_would_be_noticed(engine: str) -> None:
    assert difference(result(engine, "default_clipping")["clipped"], result("one", "parity")["cnn", 1, 1]) > 1e-3


def test_fsdp2_leaves_an_update_out_where_the_flag_is_one() -> None:
    """SGD with momentum, which has no fused form for sharded tensors; also as the first update, before any momentum."""
    found, expected = map(trained, result("fsdp2", "skipped"))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_gradients_reduced_in_bf16_are_rounded_and_no_more() -> None:
    """Each process's gradient is rounded to 8 bits (2^-9 relative), and so is their mean."""
    networks = {name: trained(network) for name, network in result("ddp", "reduced").items()}
    before, exact, rounded = (
        torch.cat([value.flatten() for value in networks[name].values()]) for name in ("before", "fp32", "bf16")
    )
    assert 2**-12 < float((rounded - exact).norm() / (exact - before).norm()) < 2**-8


@pytest.mark.parametrize("engine", SHARDED)
def test_only_ddp_reduces_in_bf16(engine: str) -> None:
    assert result(engine, "refusals")["reduction"].startswith("train.reduction: is bf16, which only DDP can do")


@pytest.mark.parametrize("engine", ENGINES)
def test_resume_in_the_middle_is_bit_identical(engine: str) -> None:
    runs = finished(engine) / "runs"
    assert result(engine, "trainer")["codes"] == [0, 0]
    whole, half = (load_file(runs / name / "checkpoints" / "final.safetensors") for name in ("whole", "half"))
    assert all(torch.equal(half[name], value) for name, value in whole.items())
    rows = [(runs / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "half")]
    losses = [
        [(row["step"], row["loss"]) for row in map(json.loads, lines) if row["kind"] == "train"] for lines in rows
    ]
    assert losses[1] == losses[0][3:]
    assert len(losses[0]) == 6


def final_weights(engine: str, name: str = "whole") -> dict[str, torch.Tensor]:
    return load_file(finished(engine) / "runs" / name / "checkpoints" / "final.safetensors")


def movement() -> float:
    """How far the whole run's end moves in float64 when each first weight moves by float32's unit roundoff."""
    assert result("one", "exact")["codes"] == [0, 0]
    return weight_difference(final_weights("one", "moved"), final_weights("one", "float64"))


def test_the_whole_run_is_well_conditioned() -> None:
    """A rounding error grows less than a hundredfold, so that an engine's own error cannot hide among them."""
    assert 0 < movement() / UNIT_ROUNDOFF < 100


@pytest.mark.parametrize("engine", ["one", *ENGINES])
def test_runs_end_with_the_same_network(engine: str) -> None:
    """As close to float64 as float32 can be. A run rounds in every layer of every step, not in its first weights only:
    one process ends four to five times as far from float64 as `movement` (measured with AVX-512, AVX2 and SSE)."""
    error, bound = weight_difference(final_weights(engine), final_weights("one", "float64")), 10 * movement()
    print(f"{engine}: {error:.1e} from float64, may be {bound:.1e}")
    assert error < bound


@pytest.mark.parametrize("engine", ENGINES)
def test_runs_end_with_the_same_summary(engine: str) -> None:
    found, ddp = (json.loads((finished(name) / "runs/whole/summary.json").read_text()) for name in (engine, "ddp"))
    assert found["validation"] == pytest.approx(ddp["validation"])
    for at in ("best", "last"):
        assert found["test"][at] == pytest.approx(ddp["test"][at])
    assert found["parameters"] == ddp["parameters"]
    assert (found["engine"], found["world_size"]) == (engine, 2)


STORED = {
    "ddp": set(),
    "zero1": {"optimizer"},
    "zero2": {"optimizer", "gradients"},
    "zero3": {"optimizer", "gradients", "parameters"},
    "fsdp2": {"optimizer", "gradients", "parameters"},
}


@pytest.mark.parametrize("engine", STORED)
def test_every_process_stores_its_share(engine: str) -> None:
    """AdamW keeps two moments of every parameter; sharded state is half of the whole on each of two processes."""
    measured = result(engine, "measure")
    whole = {"parameters": measured["total"], "gradients": measured["total"], "optimizer": 2 * measured["total"]}
    assert len(measured["ranks"]) == 2
    for rank in measured["ranks"]:
        for kind, stored in rank.items():
            share = 0.5 if kind in STORED[engine] else 1.0
            # ZeRO-2 accumulates whole parameters: one of nine lies across the border.
            assert stored / whole[kind] == pytest.approx(share, abs=0.06), (engine, kind, stored)


@pytest.mark.parametrize("engine", ENGINES)
def test_other_weights_come_and_go(engine: str) -> None:
    """As for the best epoch's test metrics: they predict as in one process, and training is not changed."""
    found = result(engine, "other_weights")
    for name, value in found["before"].items():
        assert torch.equal(found["loaded"]["network"][name], value + 1)
    network = skeleton().eval()
    network.load_state_dict(found["loaded"]["network"])
    with torch.no_grad():
        expected = network(training_set("skeleton", 1)[:4].inputs)
    torch.testing.assert_close(found["loaded"]["predicted"], expected, rtol=1e-5, atol=1e-6)
    undisturbed = result(engine, "state")["continued"]
    assert all(torch.equal(found["continued"][name], value) for name, value in undisturbed.items())


@pytest.mark.parametrize("engine", ENGINES)
def test_test_metrics_are_those_of_the_weight_files(engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Read by one process without any engine."""
    run = finished(engine) / "runs" / "whole"
    for at, weights in (("best", "best"), ("last", "final")):
        words = ["--cfg", str(run / "config.yaml"), "--weights", str(run / "checkpoints" / f"{weights}.safetensors")]
        assert evaluate_entry.main([*words, "--carry-thresholds", "--json"]) == 0
        expected = json.loads((run / "summary.json").read_text())["test"][at]
        assert json.loads(capsys.readouterr().out) == pytest.approx(expected)


@pytest.mark.parametrize("engine", ["ddp", "zero3", "fsdp2"])
def test_a_checkpoint_becomes_one_weight_file(engine: str, tmp_path: Path) -> None:
    """The last checkpoint, joined by one process, has the weights that training wrote at its end, to the bit."""
    checkpoints = finished(engine) / "runs" / "whole" / "checkpoints"
    out = tmp_path / "weights.safetensors"
    words = [sys.executable, "tools/consolidate.py", str(newest_first(checkpoints)[0]), "--out", str(out)]
    done = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    expected, found = load_file(checkpoints / "final.safetensors"), load_file(out)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("engine", ["zero1", "zero3", "fsdp2"])
def test_damage_to_any_processes_file_is_found(engine: str, tmp_path: Path) -> None:
    saved = finished(engine) / "runs" / "whole" / "checkpoints" / "step-00000006"
    pieces = [path for path in saved.iterdir() if re.search(r"zero-\d+-of-00002\.pt|__\d_0\.distcp", path.name)]
    assert len(pieces) == 2
    assert damage(saved) == ""
    for piece in pieces:
        copy = tmp_path / piece.stem
        shutil.copytree(saved, copy)
        content = bytearray(piece.read_bytes())
        content[len(content) // 2] ^= 1
        (copy / piece.name).write_bytes(content)
        assert piece.name in damage(copy)


@pytest.mark.parametrize("engine", ["zero1", "zero2", "zero3"])
def test_zero_refuses(engine: str) -> None:
    messages = result(engine, "refusals")
    assert "written by 3 processes, this run has 2" in messages["world size"]
    assert "Adafactor cannot be used with ZeRO" in messages["optimizer"]
    assert all("\n" not in message for message in messages.values())


def test_fsdp2_resumes_on_another_number_of_processes() -> None:
    """What two processes saved, one continues: the same weights, and the same next AdamW step."""
    folder = finished("fsdp2")
    run("fsdp2", folder, "load_state", launch=("--num_processes", "1"))
    saved, loaded = result("fsdp2", "state"), torch.load(folder / "load_state.pt", weights_only=False)
    assert all(torch.equal(loaded["network"][name], value) for name, value in saved["network"].items())
    assert weight_difference(loaded["continued"], saved["continued"]) < TOLERANCE
    assert weight_difference(saved["continued"], saved["network"]) > 1e-4


@pytest.mark.slow
def test_offloaded_optimizer_equals_one_process() -> None:
    folder = scratch() / "offload"
    folder.mkdir()
    run("zero2_offload", folder, "parity", "checked")
    found, expected = torch.load(folder / "parity.pt", weights_only=False), result("one", "parity")
    assert max(difference(found[case], expected[case]) for case in CASES) < TOLERANCE
